// SPDX-License-Identifier: Apache-2.0

//go:build hooks

package unit

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"gadget.example/network/test/object"
)

// hook loads the object and attaches its hooks, as IG does; or some of them: to
// verify all takes long under emulation. The tests with them have a build tag of
// their own: `make test-hooks` runs them on a kernel that has kprobes.
func hook(t *testing.T, params parameters, some ...string) *gadget {
	t.Helper()
	spec, c := loadObject(t, params, some...)
	g := setup{params: params}.open(t, spec, c)
	var err error
	if g.books[askedBook], err = newBook(spec.Maps[askedBook], c.Maps[askedBook]); err != nil {
		t.Fatal(err)
	}
	detach, err := object.AttachHooks(spec, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = detach() })
	return g
}

// portHooks book a datagram socket's port, and forget the socket.
var portHooks = []string{
	"network_get_port", "network_get_port_return", "network_unhash", "network_destruct",
}

// keysOf are those of a network namespace.
func (b *book) keysOf(t *testing.T, netns uint32, path string) [][]byte {
	t.Helper()
	return slices.DeleteFunc(b.keys(t), func(key []byte) bool {
		return b.key.field(path+"netns").uint(key) != uint64(netns)
	})
}

// booked is what a test sees of an entry.
type booked struct {
	local, remote     netip.AddrPort
	proto             uint8
	slot              uint64
	closed, connected bool
}

func decodeEnd(l layout, b []byte, path string, version uint64) netip.AddrPort {
	raw := l.field(path).of(b)
	addr, _ := netip.AddrFromSlice(raw)
	if version == 4 {
		addr, _ = netip.AddrFromSlice(raw[:4])
	}
	return netip.AddrPortFrom(addr, uint16(l.field(path+"_port").uint(b)))
}

// entriesOf reads the entries of this process in a network namespace, of a book.
func (b *book) entriesOf(t *testing.T, netns uint32, path string) (all []booked) {
	t.Helper()
	key, value := make([]byte, b.key.size), make([]byte, b.value.size)
	for i := b.Iterate(); i.Next(&key, &value); {
		number := func(name string) uint64 { return b.key.field(path + name).uint(key) }
		if number("netns") != uint64(netns) {
			continue
		}
		if pid := b.value.field("proc.pid").uint(value); pid != uint64(os.Getpid()) {
			t.Errorf("an entry of process %d, want %d", pid, os.Getpid())
		}
		e := booked{
			local:     decodeEnd(b.key, key, path+"local", number("version")),
			proto:     uint8(number("proto")),
			closed:    b.value.field("closed").uint(value) != 0,
			connected: b.value.field("connected").uint(value) != 0,
		}
		if path == "" {
			e.remote = decodeEnd(b.key, key, "remote", number("version"))
		} else {
			e.slot = b.key.field("slot").uint(key)
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b booked) int { return int(a.slot) - int(b.slot) })
	return all
}

// A step is a system call and what is in the books after it.
type step struct {
	do                 func(sockets map[string]int) error
	ports, connections []booked
}

func open(name string, domain, kind, proto int) func(map[string]int) error {
	return func(sockets map[string]int) error {
		fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
		sockets[name] = fd
		return err
	}
}

func bind(name string, to netip.AddrPort) func(map[string]int) error {
	return func(sockets map[string]int) error { return unix.Bind(sockets[name], socketAddress(to)) }
}

func connect(name string, to netip.AddrPort) func(map[string]int) error {
	return func(sockets map[string]int) error {
		err := unix.Connect(sockets[name], socketAddress(to))
		if errors.Is(err, unix.EINPROGRESS) {
			return nil
		}
		return err
	}
}

func disconnect(name string) func(map[string]int) error {
	return func(sockets map[string]int) error {
		// struct sockaddr with AF_UNSPEC: connect() has no wrapper for it.
		return rawConnect(sockets[name], make([]byte, 16))
	}
}

func startListening(name string) func(map[string]int) error {
	return func(sockets map[string]int) error { return unix.Listen(sockets[name], 1) }
}

func closeIt(name string) func(map[string]int) error {
	return func(sockets map[string]int) error {
		err := unix.Close(sockets[name])
		delete(sockets, name)
		return err
	}
}

func rawConnect(fd int, addr []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&addr[0])), uintptr(len(addr)))
	if errno != 0 {
		return errno
	}
	return nil
}

// eventually waits for a condition: the kernel destroys sockets later.
func eventually(t *testing.T, condition func() bool, what string) {
	t.Helper()
	for end := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Error(what)
			return
		}
	}
}

func TestSystemCallsFillTheBooks(t *testing.T) {
	const tcp, udp = protoTCP, protoUDP
	books := hook(t, nil).books
	udpPort := func(local netip.AddrPort) booked { return booked{local: local, proto: udp} }
	peer := func(proto uint8) []booked { return []booked{{local: here4, remote: there4, proto: proto}} }
	withPeer := udpPort(here4)
	withPeer.connected = true

	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"a UDP server", []step{
			{do: open("s", unix.AF_INET, unix.SOCK_DGRAM, 0)},
			{do: bind("s", here4), ports: []booked{udpPort(here4)}},
		}},
		{"a dual-stack UDP server", []step{
			{do: open("s", unix.AF_INET6, unix.SOCK_DGRAM, 0)},
			{do: bind("s", any6), ports: []booked{udpPort(any6)}},
		}},
		{"a UDP client", []step{
			{do: open("s", unix.AF_INET, unix.SOCK_DGRAM, 0)},
			{do: bind("s", here4), ports: []booked{udpPort(here4)}},
			{do: connect("s", there4), ports: []booked{withPeer}, connections: peer(udp)},
			{do: disconnect("s"), ports: []booked{udpPort(here4)}},
		}},
		{"a UDP client of an IPv6 socket", []step{
			{do: open("s", unix.AF_INET6, unix.SOCK_DGRAM, 0)},
			{do: bind("s", mapped4), ports: []booked{udpPort(here4)}},
			{
				do:    connect("s", netip.AddrPortFrom(netip.AddrFrom16(there4.Addr().As16()), there4.Port())),
				ports: []booked{withPeer}, connections: peer(udp),
			},
		}},
		{"a raw socket is none", []step{
			{do: open("raw", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_UDP)},
			{do: connect("raw", there4)},
		}},
		{"a listener has no entry of its port", []step{
			{do: open("s", unix.AF_INET, unix.SOCK_STREAM, 0)},
			{do: bind("s", here4)},
			{do: startListening("s")},
		}},
		{"a TCP client", []step{
			{do: open("s", unix.AF_INET, unix.SOCK_STREAM, 0)},
			{do: bind("s", here4)},
			{do: connect("s", there4), connections: peer(tcp)},
			{do: closeIt("s")},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			home := newHome(t)
			id := inode(t, home)
			sockets := map[string]int{}
			for i, s := range c.steps {
				if err := inside(home, func() error { return s.do(sockets) }); err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
				if got := books[portBook].entriesOf(t, id, "local."); !slices.Equal(got, s.ports) {
					t.Errorf("step %d: ports\n got %v\nwant %v", i, got, s.ports)
				}
				if got := books[connectionBook].entriesOf(t, id, ""); !slices.Equal(got, s.connections) {
					t.Errorf("step %d: connections\n got %v\nwant %v", i, got, s.connections)
				}
			}
			for _, name := range slices.Sorted(maps.Keys(sockets)) {
				_ = unix.Close(sockets[name])
			}
			for _, b := range []struct{ name, path string }{{portBook, "local."}, {connectionBook, ""}} {
				eventually(t, func() bool { return len(books[b.name].keysOf(t, id, b.path)) == 0 },
					"every socket is closed, want an empty book "+b.name)
			}
		})
	}
}

// TestSystemCallsBeginAPageAnew puts back what was in the books of a socket that
// is gone, as if its end had been missed, and opens others until one has its
// address: what its ends were is forgotten.
func TestSystemCallsBeginAPageAnew(t *testing.T) {
	const most = 1000 // sockets
	books := hook(t, nil, slices.Concat(portHooks, []string{"network_tcp_connect"})...).books
	pages := books[pageBook]
	for _, c := range []struct {
		name, book, path string
		kind             int
		start            func(fd int) error
	}{
		{"a UDP server", portBook, "local.", unix.SOCK_DGRAM, func(fd int) error {
			return unix.Bind(fd, &unix.SockaddrInet4{})
		}},
		{"a TCP client", connectionBook, "", unix.SOCK_STREAM | unix.SOCK_NONBLOCK, func(fd int) error {
			if err := unix.Connect(fd, socketAddress(there4)); !errors.Is(err, unix.EINPROGRESS) {
				return fmt.Errorf("connecting: %w", err)
			}
			return nil
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			home := newHome(t)
			id := inode(t, home)
			b := books[c.book]
			open := func() (fd int) {
				t.Helper()
				err := inside(home, func() (err error) {
					if fd, err = unix.Socket(unix.AF_INET, c.kind, 0); err != nil {
						return err
					}
					return c.start(fd)
				})
				if err != nil {
					t.Fatal(err)
				}
				return fd
			}
			// since is of the page of a socket, 0: it has none.
			since := func(sk uint64) uint64 {
				page := make([]byte, pages.value.size)
				if err := pages.Lookup(sk, page); err != nil {
					return 0
				}
				return pages.value.field("since").uint(page)
			}

			first := open()
			keys := b.keysOf(t, id, c.path)
			if len(keys) != 1 {
				t.Fatalf("one socket, want one entry, got %d", len(keys))
			}
			entry, page := make([]byte, b.value.size), make([]byte, pages.value.size)
			if err := b.Lookup(keys[0], entry); err != nil {
				t.Fatal(err)
			}
			sk := b.value.field("sk").uint(entry)
			if err := pages.Lookup(sk, page); err != nil {
				t.Fatal(err)
			}
			_ = unix.Close(first)
			eventually(t, func() bool { return len(b.keysOf(t, id, c.path)) == 0 }, "the socket is closed, want no entry of it")
			if err := errors.Join(b.Put(keys[0], entry), pages.Put(sk, page)); err != nil {
				t.Fatal(err)
			}

			stale := since(sk)
			for n := 0; since(sk) == stale; n++ {
				if n == most {
					t.Fatalf("none of %d sockets has the address of the one that is gone", n)
				}
				fd := open()
				defer func() { _ = unix.Close(fd) }()
			}
			if err := b.Lookup(keys[0], entry); !errors.Is(err, ebpf.ErrKeyNotExist) {
				t.Errorf("wanted no entry left of the socket that is gone, got %v", err)
			}
		})
	}
}

// TestSystemCallsRememberPaths opens ports in folders whose paths are of many
// lengths: one that there is no room for is not known.
func TestSystemCallsRememberPaths(t *testing.T) {
	b := hook(t, parameters{"paths": true}, portHooks...).books[pathBook]
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range folders(t) {
		cwd := dir
		if len(dir) >= int(b.value.field("cwd").size) {
			cwd = ""
		}
		t.Chdir(dir)
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{})
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, want := b.paths(t), []string{exe, cwd}; !slices.Equal(got, want) {
			t.Errorf("a port opened in the folder %s of %d bytes\n got %q\nwant %q", dir, len(dir), got, want)
		}
		_ = unix.Close(fd)
		eventually(t, func() bool { return len(b.keys(t)) == 0 }, "the socket is closed, want no paths of it")
	}
}

// folders have paths of many lengths, up to some over 512 bytes.
func folders(t *testing.T) []string {
	t.Helper()
	all := []string{"/", "/proc", "/proc/self/fd"}
	for _, base := range []string{t.TempDir(), t.TempDir()} {
		for _, n := range []int{1, 255, 90, 90, 30, 10, 5, 1, 1, 1, 255} {
			base = filepath.Join(base, strings.Repeat("n", n))
			all = append(all, base)
		}
	}
	for _, dir := range all {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	all[2] = fmt.Sprintf("/proc/%d/fd", os.Getpid())
	return all
}

// paths are the executable and the working directory in the only entry.
func (b *book) paths(t *testing.T) (found []string) {
	t.Helper()
	var key uint64
	value := make([]byte, b.value.size)
	for i := b.Iterate(); i.Next(&key, &value); {
		found = append(found, cString(b.value.field("exepath").of(value)), cString(b.value.field("cwd").of(value)))
	}
	return found
}
