// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace.
type namespace struct {
	name  string // in messages
	fd    netns.NsHandle
	inode uint32
	links *netlink.Handle
}

// hostNamespace is this process's, which is that of process 1: the one that ig
// watches with --host.
func hostNamespace(t *testing.T) *namespace {
	t.Helper()
	fd, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	return openNamespace(t, "host", fd)
}

func newNamespace(t *testing.T, name string) *namespace {
	t.Helper()
	made := make(chan netns.NsHandle)
	failed := make(chan error)
	go func() {
		// The thread is in the new namespace, and so ends with the goroutine.
		runtime.LockOSThread()
		fd, err := netns.New()
		if err != nil {
			failed <- err
			return
		}
		made <- fd
	}()
	select {
	case fd := <-made:
		ns := openNamespace(t, name, fd)
		ns.setUp(t, "lo")
		return ns
	case err := <-failed:
		t.Fatalf("making a network namespace: %v", err)
		return nil
	}
}

func openNamespace(t *testing.T, name string, fd netns.NsHandle) *namespace {
	t.Helper()
	t.Cleanup(func() { fd.Close() })
	var stat unix.Stat_t
	if err := unix.Fstat(int(fd), &stat); err != nil {
		t.Fatal(err)
	}
	links, err := netlink.NewHandleAt(fd, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(links.Close)
	return &namespace{name: name, fd: fd, inode: uint32(stat.Ino), links: links}
}

// do calls f on a thread in the namespace.
func (ns *namespace) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and so the thread ends with the goroutine
		if err := netns.Set(ns.fd); err != nil {
			done <- fmt.Errorf("entering the namespace %s: %w", ns.name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

func (ns *namespace) link(t *testing.T, name string) netlink.Link {
	t.Helper()
	link, err := ns.links.LinkByName(name)
	if err != nil {
		t.Fatalf("device %s in %s: %v", name, ns.name, err)
	}
	return link
}

func (ns *namespace) setUp(t *testing.T, device string) {
	t.Helper()
	if err := ns.links.LinkSetUp(ns.link(t, device)); err != nil {
		t.Fatalf("device %s in %s: up: %v", device, ns.name, err)
	}
}

// address gives a device an address that can be used at once.
func (ns *namespace) address(t *testing.T, device string, prefix netip.Prefix) {
	t.Helper()
	flags := 0
	if prefix.Addr().Is6() {
		flags = unix.IFA_F_NODAD // else it is tentative for a second
	}
	address := &netlink.Addr{
		IPNet: &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())},
		Flags: flags,
	}
	if err := ns.links.AddrAdd(ns.link(t, device), address); err != nil {
		t.Fatalf("device %s in %s: address %s: %v", device, ns.name, prefix, err)
	}
}

// neighbour makes a peer's link address known: nothing waits for its resolution,
// which would send packets when their sender is long done.
func (ns *namespace) neighbour(t *testing.T, device string, addr netip.Addr, mac net.HardwareAddr) {
	t.Helper()
	err := ns.links.NeighSet(&netlink.Neigh{
		LinkIndex: ns.link(t, device).Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: addr.AsSlice(), HardwareAddr: mac,
	})
	if err != nil {
		t.Fatalf("device %s in %s: neighbour %s: %v", device, ns.name, addr, err)
	}
}

// sysctl sets one that the kernel may not have.
func (ns *namespace) sysctl(t *testing.T, file, value string) {
	t.Helper()
	err := ns.do(func() error {
		return os.WriteFile("/proc/sys/net/"+file, []byte(value), 0)
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
}
