// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"gadget.example/network/internal/vm/guest"
)

// end takes the exit frame and lets the guest power off.
func (s *session) end(payload []byte, port io.Writer) error {
	var exit guest.Exit
	if err := json.Unmarshal(payload, &exit); err != nil {
		return fmt.Errorf("exit frame: %w", err)
	}
	s.exit = &exit
	s.result.ExitStatus = exit.Status
	s.result.Command = time.Since(s.start) - s.result.Boot
	if _, err := port.Write([]byte{guest.Ack}); err != nil {
		return fmt.Errorf("acknowledge the exit status: %w", err)
	}
	return nil
}

// failure says what went wrong in the guest, what is most telling first; empty if nothing did.
func (s *session) failure(ctx context.Context, talkErr, qemuErr error, log consoleLog) string {
	exhausted := cmp.Or(log.find("Out of memory: "), log.find("Initramfs unpacking failed: "))
	panicked := log.find("Kernel panic - not syncing: ")
	switch {
	case s.exit != nil && s.exit.Error != "":
		return "could not run the command: " + s.exit.Error
	case s.exit != nil && s.exit.OOMKills > 0, s.exit == nil && exhausted != "":
		return fmt.Sprintf("ran out of its %d MiB of memory: %s", s.config.MemoryMiB, exhausted)
	case panicked != "":
		return "panicked: " + panicked
	case ctx.Err() != nil:
		return s.stopped(ctx.Err())
	case talkErr != nil:
		return "sent what is no message: " + talkErr.Error()
	case qemuErr != nil:
		return "was ended by QEMU: " + qemuErr.Error()
	case s.exit == nil:
		return "powered off before the command had an exit status"
	}
	return ""
}

func (s *session) stopped(err error) string {
	verb := "was stopped"
	if errors.Is(err, context.DeadlineExceeded) {
		verb = "did not end before its deadline and was stopped"
	}
	doing := "while it ran the command"
	switch {
	case s.exit != nil:
		doing = "while it powered off"
	case s.result.Boot == 0:
		doing = "while it booted"
	}
	return fmt.Sprintf("%s after %s, %s", verb, time.Since(s.start).Round(time.Millisecond), doing)
}

// consoleLog is the file that QEMU writes the guest's serial console to.
type consoleLog struct {
	path string
	keep bool
}

const lastLines = 20

func openConsole(path string) (consoleLog, error) {
	var f *os.File
	var err error
	if path == "" {
		f, err = os.CreateTemp("", "vm-console-*.log")
	} else {
		f, err = os.Create(path)
	}
	if err != nil {
		return consoleLog{}, fmt.Errorf("console log: %w", err)
	}
	return consoleLog{path: f.Name(), keep: path != ""}, f.Close()
}

// discard removes the log unless the caller asked for it.
func (l consoleLog) discard() error {
	if l.keep {
		return nil
	}
	return os.Remove(l.path)
}

func (l consoleLog) lines() []string {
	b, err := os.ReadFile(l.path)
	if err != nil {
		return []string{err.Error()}
	}
	text := strings.TrimSpace(strings.ReplaceAll(string(b), "\r", ""))
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

// find returns the first line that contains a string, from there on; empty if none does.
func (l consoleLog) find(s string) string {
	for _, line := range l.lines() {
		if i := strings.Index(line, s); i >= 0 {
			return strings.TrimPrefix(line[i:], "Kernel panic - not syncing: ")
		}
	}
	return ""
}

func (l consoleLog) guestError(reason string, err error) error {
	lines := l.lines()
	return &GuestError{
		Reason:    reason,
		Console:   l.path,
		LastLines: lines[max(0, len(lines)-lastLines):],
		Err:       err,
	}
}
