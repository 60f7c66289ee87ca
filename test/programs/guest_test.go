// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"gadget.example/network/internal/vm/guest"
	"gadget.example/network/test/rootfs"
)

// Addresses beside the programs'.
const (
	clientAddress    = "10.9.0.250"
	bridgeAddress    = "10.10.0.1"
	containerAddress = "10.10.0.2"
)

// Network devices, at the host's end and at the other.
const (
	toClient    = "to-client"
	toContainer = "to-container"
	inside      = "eth0"
)

// limit bounds each wait: an emulated guest is slow, and a program may ask it for seconds of work.
const limit = 3 * time.Minute

// machine is the guest.
type machine struct {
	client    netns.NsHandle // namespace of who connects
	container netns.NsHandle
	keeper    int // process in the container's namespace that is there before the container is
}

// newMachine makes of the guest what the programs need, once.
func newMachine(t *testing.T) *machine {
	t.Helper()
	// What follows ends every process that there is.
	if _, err := os.Stat(guest.ConfigPath); err != nil || os.Getppid() != 1 {
		t.Fatalf("this is no guest of internal/vm: %v", err)
	}
	hosts := os.WriteFile(guestRoot+"/etc/hosts", []byte("127.0.0.1 localhost vm\n"), 0o644)
	if err := errors.Join(giveBack(), enterable(), unix.Sethostname([]byte("vm")), hosts); err != nil {
		t.Fatal(err)
	}
	m := &machine{client: newNamespace(t), container: newNamespace(t)}
	join(t, toClient, m.client, clientAddress)
	join(t, toContainer, m.container, containerAddress)
	own := openLinks(t, netns.None())
	for i := range programs {
		addAddress(t, own, toClient, address(i))
	}
	addAddress(t, own, toContainer, netip.MustParseAddr(bridgeAddress))
	defaultRoute(t, m.container, bridgeAddress)
	publish(t)
	return m
}

// giveBack makes the files of the root file system their owners' again.
func giveBack() error {
	list, err := os.ReadFile(guestOwners)
	if err != nil {
		return err
	}
	return rootfs.GiveBack(guestRoot, list)
}

// enterable mounts what programs expect.
func enterable() error {
	// The root itself too, as runc wants one that is a mount.
	for _, mount := range [][2]string{{guestRoot, ""}, {"/proc", "/proc"}, {"/sys", "/sys"}, {"/dev", "/dev"}} {
		if err := unix.Mount(mount[0], guestRoot+mount[1], "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s: %w", mount[0], err)
		}
	}
	return nil
}

// fresh are folders whose content is of one round alone.
var fresh = []string{"/run", "/tmp"}

// clear ends all programs, and makes them forget.
func (m *machine) clear(t *testing.T) {
	t.Helper()
	if err := unix.Kill(-1, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		t.Fatal(err)
	}
	await(t, "the end of all programs", func() (bool, error) {
		for _, pid := range processes() {
			// A kernel thread has no executable, and neither has who has ended.
			if _, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && pid != 1 && pid != os.Getpid() {
				return false, nil
			}
		}
		return true, nil
	})
	for _, dir := range fresh {
		if err := unix.Unmount(guestRoot+dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", guestRoot+dir, "tmpfs", 0, "mode=1777"); err != nil {
			t.Fatal(err)
		}
	}
	cmd := inRoot("exec sleep 1000000")
	if err := within(m.container, cmd.Start); err != nil {
		t.Fatal(err)
	}
	m.keeper = cmd.Process.Pid
	go func() { _ = cmd.Wait() }() // is killed
}

// inRoot is a shell's command in the root file system.
func inRoot(script string, env ...string) *exec.Cmd {
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C"}, env...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: guestRoot, Setsid: true}
	return cmd
}

// publish has the container's port be one of the host's.
func publish(t *testing.T) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	for i, p := range programs {
		if !p.services[0].published {
			continue
		}
		rule := fmt.Sprintf("iptables -t nat -A PREROUTING -d %s -p tcp --dport %d -j DNAT --to-destination %s:%d",
			address(i), publishedPort, containerAddress, containerPort)
		if out, err := inRoot(rule).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", rule, err, out)
		}
	}
}

func newNamespace(t *testing.T) (made netns.NsHandle) {
	t.Helper()
	err := onThread(func() (err error) {
		made, err = netns.New()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { made.Close() })
	return made
}

// within calls f on a thread in a network namespace. Sockets that it makes stay there.
func within(ns netns.NsHandle, f func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns); err != nil {
			return err
		}
		return f()
	})
}

// onThread calls f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// join gives a namespace a device to the host, and an address.
func join(t *testing.T, device string, ns netns.NsHandle, addr string) {
	t.Helper()
	own, other := openLinks(t, netns.None()), openLinks(t, ns)
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: device}, PeerName: inside, PeerNamespace: netlink.NsFd(int(ns))}
	if err := own.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	setUp(t, own, device)
	setUp(t, other, inside)
	setUp(t, other, "lo")
	addAddress(t, other, inside, netip.MustParseAddr(addr))
}

// openLinks is for the devices of a namespace; netns.None() is this process's.
func openLinks(t *testing.T, ns netns.NsHandle) (links *netlink.Handle) {
	t.Helper()
	var err error
	if ns.IsOpen() {
		links, err = netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	} else {
		links, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(links.Close)
	return links
}

func find(t *testing.T, links *netlink.Handle, device string) netlink.Link {
	t.Helper()
	link, err := links.LinkByName(device)
	if err != nil {
		t.Fatalf("device %s: %v", device, err)
	}
	return link
}

func setUp(t *testing.T, links *netlink.Handle, device string) {
	t.Helper()
	if err := links.LinkSetUp(find(t, links, device)); err != nil {
		t.Fatalf("device %s: up: %v", device, err)
	}
}

func addAddress(t *testing.T, links *netlink.Handle, device string, addr netip.Addr) {
	t.Helper()
	prefix := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(24, 32)}
	if err := links.AddrAdd(find(t, links, device), &netlink.Addr{IPNet: prefix}); err != nil {
		t.Fatalf("device %s: address %s: %v", device, addr, err)
	}
}

func defaultRoute(t *testing.T, ns netns.NsHandle, gateway string) {
	t.Helper()
	links := openLinks(t, ns)
	err := links.RouteAdd(&netlink.Route{LinkIndex: find(t, links, inside).Attrs().Index, Gw: net.ParseIP(gateway)})
	if err != nil {
		t.Fatalf("route by %s: %v", gateway, err)
	}
}

// await waits until done says so.
func await(t *testing.T, what string, done func() (bool, error)) {
	t.Helper()
	if err := awaitOr(what, limit, done); err != nil {
		t.Fatal(err)
	}
}

func awaitOr(what string, limit time.Duration, done func() (bool, error)) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		if ok, err := done(); err != nil || ok {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s did not come within %v", what, limit)
		}
	}
}
