// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"gadget.example/network/internal/vm/guest"
)

// machine is how QEMU plays one architecture.
type machine struct {
	binary   string
	pkg      string // the Debian and Ubuntu package with the binary
	console  string // the kernel's name of the first serial port
	platform string // -machine
	cpu      string // -cpu, where QEMU emulates it; KVM gives the guest the host's own
	kernel   string // parameters of the kernel's
	plugs    bool   // takes processors while it runs
}

// machines is by Go's (and Debian's) name of the architecture.
var machines = map[string]machine{
	// Parts of "max" are dear to emulate, and nothing here is about them: five-level page tables cost a level in every walk,
	// string instructions that are said to be fast (erms, fsrm) are bytes one after the other, and every visit to a program's
	// memory ends a block of code twice (smap). Without these a gadget loads in 0.75 of the time.
	// Where the host is busy, timer interrupts of an emulated guest come too late for the kernel's test of them: it panics.
	"amd64": {"qemu-system-x86_64", "qemu-system-x86", "ttyS0", "q35", "max,la57=off,erms=off,fsrm=off,smap=off", "no_timer_check", true},
	// Pointer authentication, part of "max", is dear to emulate. The newest interrupt controller that there is: KVM has the host's.
	"arm64": {"qemu-system-aarch64", "qemu-system-arm", "ttyAMA0", "virt,gic-version=max", "cortex-a57", "", false},
}

func machineFor(arch string) (machine, error) {
	m, ok := machines[arch]
	if !ok {
		return m, fmt.Errorf("kernel architecture %q: none that a guest can be booted with here", arch)
	}
	return m, nil
}

func (m machine) find() (string, error) {
	path, err := exec.LookPath(m.binary)
	if err != nil {
		return "", fmt.Errorf("%s not found: install it (Debian, Ubuntu: apt-get install %s)", m.binary, m.pkg)
	}
	return path, nil
}

// The descriptors that QEMU inherits (exec.Cmd.ExtraFiles begins at 3).
const (
	portFD  = 3
	imageFD = 4
)

// args is QEMU's command line.
func (m machine) args(c Config, accel, console string) []string {
	args := m.computer(c, accel, "rdinit="+guest.InitPath)
	if c.Tap != "" {
		args = append(args,
			"-netdev", "tap,id=net,script=no,downscript=no,ifname="+strings.ReplaceAll(c.Tap, ",", ",,"),
			"-device", "virtio-net-pci,netdev=net,romfile=", // without the program to boot from it
		)
	}
	return append(args,
		"-initrd", fmt.Sprintf("/proc/self/fd/%d", imageFD),
		"-chardev", "file,id=console,path="+strings.ReplaceAll(console, ",", ",,"),
		"-serial", "chardev:console",
		"-device", "virtio-serial-pci",
		"-chardev", fmt.Sprintf("socket,id=port,fd=%d", portFD),
		"-device", "virtserialport,chardev=port,name="+guest.PortName,
	)
}

// computer is the part of the command line that makes a computer and starts a kernel. A panic or an oops reboots the guest
// at once (panic=-1, oops=panic), and a reboot ends QEMU (-no-reboot).
func (m machine) computer(c Config, accel, parameters string) []string {
	cpu, engine := m.cpu, "tcg,thread=single"
	if accel == kvm {
		cpu, engine = "host", kvm
	}
	args := []string{
		"-machine", m.platform,
		"-cpu", cpu,
		"-accel", engine,
		"-m", strconv.Itoa(c.MemoryMiB) + "M",
		"-smp", fmt.Sprintf("cpus=%d,maxcpus=%d", c.CPUs, c.MaxCPUs),
		"-nodefaults", "-no-user-config", "-no-reboot",
		"-display", "none",
		"-kernel", c.Kernel.Image,
		"-append", fmt.Sprintf("console=%s panic=-1 oops=panic %s %s", m.console, m.kernel, parameters),
	}
	if c.MaxCPUs > c.CPUs && accel == tcg {
		args = append(args, asVMware(cpu)...)
	}
	if c.Counted {
		args = append(args, "-icount", "shift=0,sleep=off")
	}
	return args
}

// asVMware lets Linux take an emulated computer for one of VMware's, by its serial number and a port that QEMU has too
// (vmware_platform() in arch/x86/kernel/cpu/vmware.c). Newer kernels take a processor that is not there for possible only
// under a hypervisor that they know (acpi_is_processor_usable() in arch/x86/kernel/acpi/boot.c), and TCG they do not.
func asVMware(cpu string) []string {
	return []string{"-cpu", cpu + ",hypervisor=off", "-smbios", "type=1,serial=VMware-guest"}
}

// qemu is a running QEMU.
type qemu struct {
	cmd    *exec.Cmd
	port   *os.File
	stderr bytes.Buffer
	ended  chan error
}

// startQEMU starts QEMU with one end of a socket pair as the guest's port. It is killed when ctx is done.
func startQEMU(ctx context.Context, binary string, args []string, image *os.File) (*qemu, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket pair for the guest's port: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "guest's port"), os.NewFile(uintptr(fds[1]), "QEMU's port")
	defer theirs.Close()
	q := &qemu{cmd: exec.CommandContext(ctx, binary, args...), port: ours, ended: make(chan error, 1)}
	q.cmd.Stderr = &q.stderr
	q.cmd.ExtraFiles = []*os.File{theirs, image}
	q.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		// The parent whose death Pdeathsig is about is the thread that started QEMU: it has to live as long.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := q.cmd.Start()
		started <- err
		if err == nil {
			q.ended <- q.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		ours.Close()
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	return q, nil
}

func (q *qemu) kill() {
	_ = q.cmd.Process.Kill() // it may have ended by itself
}

// wait waits for QEMU's end and closes the port.
func (q *qemu) wait() error {
	err := <-q.ended
	if said := strings.TrimSpace(q.stderr.String()); err != nil && said != "" {
		err = fmt.Errorf("%w: %s", err, strings.ReplaceAll(said, "\n", "; "))
	}
	return errors.Join(err, q.port.Close())
}
