// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestCommandLine runs sessions at a terminal, in testdata/script, one after the
// other: each compares what is on this machine before and after. Beside
// testscript's own commands they have
//
//	status N COMMAND...          run it, and want its exit status
//	mistake UID N REGEXP COMMAND...
//	                             run it as a user, and want its exit status,
//	                             nothing on standard output, and one line that
//	                             matches on standard error
//	events                       want standard output to be events, one a line
//	fits N                       want none of its lines to be wider than N characters
func TestCommandLine(t *testing.T) {
	testscript.RunT(oneByOne{t}, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			before, err := readResources()
			env.Defer(func() {
				if err := awaitResources(before); err != nil {
					t.Error(err)
				}
			})
			env.Setenv("PATH", artifacts+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("IMAGE_FILE", artifact(imageFile))
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status":  status,
			"mistake": mistake,
			"events":  events,
			"fits":    fits,
		},
	})
}

// oneByOne runs sessions one after the other, where testscript would run them in
// parallel.
type oneByOne struct{ *testing.T }

func (t oneByOne) Run(name string, f func(testscript.T)) {
	t.T.Run(name, func(t *testing.T) { f(oneByOne{t}) })
}
func (oneByOne) Parallel()     {}
func (oneByOne) Verbose() bool { return testing.Verbose() }

func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND...")
	}
	got, err := exitStatus(ts.Exec(args[1], args[2:]...))
	ts.Check(err)
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("%s: wanted exit status %s, got %d", strings.Join(args[1:], " "), args[0], got)
	}
}

func exitStatus(err error) (int, error) {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

func mistake(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 {
		ts.Fatalf("usage: mistake UID N REGEXP COMMAND...")
	}
	uid, err := strconv.ParseUint(args[0], 10, 32)
	ts.Check(err)
	program, err := exec.LookPath(filepath.Join(artifacts, args[3]))
	if err != nil {
		program, err = exec.LookPath(args[3])
	}
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args[4:]...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "PATH="+ts.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	got, err := exitStatus(cmd.Run())
	ts.Check(err)
	ts.Logf("%s", &stderr)
	if fmt.Sprint(got) != args[1] {
		ts.Fatalf("wanted exit status %s, got %d", args[1], got)
	}
	if stdout.Len() > 0 {
		ts.Fatalf("wanted nothing on standard output, got %s", &stdout)
	}
	said := strings.TrimSuffix(stderr.String(), "\n")
	if matched, err := regexp.MatchString(args[2], said); err != nil || !matched || strings.Contains(said, "\n") {
		ts.Fatalf("wanted one line that matches %q on standard error, got %v\n%s", args[2], err, said)
	}
}

func events(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: events")
	}
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		var e igEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Egress == nil {
			ts.Fatalf("wanted an event, got %v: %s", err, line)
		}
	}
}

func fits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: fits N")
	}
	widest, err := strconv.Atoi(args[0])
	ts.Check(err)
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		line = strings.TrimSuffix(line, "\n")
		if n := utf8.RuneCountInString(line); n > widest {
			ts.Fatalf("wanted at most %d characters, got %d: %s", widest, n, line)
		}
	}
}
