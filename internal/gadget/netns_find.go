// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// netNSFile is the file of a network namespace that is asked for by path, or by
// its name of `ip netns`.
func netNSFile(asked string) (string, error) {
	file := asked
	if !strings.Contains(asked, "/") {
		file = filepath.Join(netNSDir, asked)
	}
	err := checkNetNS(file)
	switch {
	case err == nil:
		return file, nil
	case file != asked && errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("--netns %s: %s has no network namespace of this name; give one that `ip netns` lists, a path, or all", word(asked), netNSDir)
	default:
		return "", fmt.Errorf("--netns %s: %w", word(asked), err)
	}
}

var errNoNetNS = errors.New("not a network namespace; its file is as /run/netns/NAME or /proc/PID/ns/net")

func checkNetNS(file string) error {
	f, err := os.Open(file)
	if err != nil {
		var path *fs.PathError
		if errors.As(err, &path) {
			return path.Err
		}
		return err
	}
	defer f.Close()
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return errNoNetNS
	}
	return nil
}

// allNetNS finds a file for each network namespace that there is: a thread's, one
// that is mounted, or one that a process has open.
func allNetNS() ([]string, error) {
	found := netNSFinder{files: map[string]string{}, mountNS: map[string]bool{}}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, process := range processes {
		found.lookAtThreads(process)
		found.lookAtFiles(process)
		found.lookAtMounts(process)
	}
	var files []string
	for _, file := range found.files {
		files = append(files, file)
	}
	slices.Sort(files)
	return files, nil
}

// netNSFinder looks at processes. What ends meanwhile has nothing to be found.
type netNSFinder struct {
	files   map[string]string // by what the link says: "net:[4026531840]"
	mountNS map[string]bool   // that were looked at
}

func (f *netNSFinder) add(link, file string) {
	if _, ok := f.files[link]; !ok && strings.HasPrefix(link, "net:[") {
		f.files[link] = file
	}
}

func (f *netNSFinder) addLinks(pattern string) {
	files, _ := filepath.Glob(pattern) // the pattern is well-formed
	for _, file := range files {
		if link, err := os.Readlink(file); err == nil {
			f.add(link, file)
		}
	}
}

func (f *netNSFinder) lookAtThreads(process string) { f.addLinks(process + "/task/[0-9]*/ns/net") }
func (f *netNSFinder) lookAtFiles(process string)   { f.addLinks(process + "/fd/[0-9]*") }

// lookAtMounts reads the mounts of a mount namespace: see proc_pid_mountinfo(5).
func (f *netNSFinder) lookAtMounts(process string) {
	ns, err := os.Readlink(process + "/ns/mnt")
	if err != nil || f.mountNS[ns] {
		return
	}
	text, err := os.ReadFile(process + "/mountinfo")
	if err != nil {
		return
	}
	f.mountNS[ns] = true
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) > 4 {
			f.add(fields[3], process+"/root"+unescape.Replace(fields[4]))
		}
	}
}

// unescape undoes what mangle() in fs/seq_file.c does to a path.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
