// SPDX-License-Identifier: Apache-2.0

package containers

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// network is what containerd's containers are given by CNI: the address of the host in it, and both families.
const network = `{"cniVersion": "1.0.0", "name": "test", "plugins": [{
	"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
	"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.87.0.0/24"}], [{"subnet": "fd87::/64"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
}]}`

var gateways = [2]netip.Addr{netip.MustParseAddr("10.87.0.1"), netip.MustParseAddr("fd87::1")}

// A container is one of containerd's.
type container struct {
	name string
	pid  int
	at   [2]netip.Addr // IPv4, IPv6
}

// ctr is containerd's own client, in the namespace that ig looks at.
const ctr = "ctr -n k8s.io "

// startContainerd starts the daemon, with the image that containers are of.
func startContainerd(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { sh(t, "rm -rf /run/containerd") }) // Docker would take it for one that runs
	start(t, "containerd")
	sh(t, `mkdir -p /etc/cni/net.d /opt/cni; ln -sfn /usr/lib/cni /opt/cni/bin`)
	if err := os.WriteFile("/etc/cni/net.d/10-test.conflist", []byte(network), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		out, err := exec.Command("ctr", "version").CombinedOutput()
		if err != nil {
			return fmt.Errorf("ctr version: %w: %s", err, out)
		}
		return nil
	})
	sh(t, ctr+"image import --no-unpack %s", writeImage(t))
}

// runContainer starts a container. Without options it has a network namespace of its own.
func runContainer(t *testing.T, name, options string, command ...string) container {
	t.Helper()
	if options == "" {
		options = "--cni"
	}
	sh(t, ctr+"run --detach --snapshotter native %s %s %s %s", options, imageName, name, strings.Join(command, " "))
	c := container{name: name}
	for row := range strings.Lines(sh(t, ctr+"task ls")) {
		if fields := strings.Fields(row); len(fields) > 1 && fields[0] == name {
			c.pid, _ = strconv.Atoi(fields[1]) // 0 is nobody's
		}
	}
	if c.pid == 0 {
		t.Fatalf("container %s has no task", name)
	}
	t.Cleanup(func() {
		sh(t, ctr+"task rm --force %[1]s 2>/dev/null || true; "+ctr+"container rm %[1]s 2>/dev/null || true", name)
	})
	if strings.Contains(options, "--cni") {
		c.at = addresses(t, c.pid, "eth0")
	}
	return c
}

// remove ends a container. Its addresses ctr gives back only where it has waited for the end.
func (c container) remove(t *testing.T) {
	t.Helper()
	sh(t, ctr+"task rm --force %[1]s; "+ctr+"container rm %[1]s", c.name)
	for _, address := range c.at {
		sh(t, "rm -f /var/lib/cni/networks/test/%s", address)
	}
}

var execs int

// do runs a command in the container. That it fails to connect is its own.
func (c container) do(t *testing.T, command string) {
	t.Helper()
	execs++
	sh(t, ctr+"task exec --exec-id e%d %s %s || true", execs, c.name, command)
}

// get is how each side connects: a client that says where to, of its own name. (With -T, Debian's static busybox crashes.)
func get(to netip.Addr, port uint16) string {
	return fmt.Sprintf("wget -q -O /dev/null http://%s/", netip.AddrPortFrom(to, port))
}

// A scene is what a test makes, and what ig is to say of it: each event is there once for each time.
type scene struct{ wanted []event }

func (s *scene) want(container, comm string, egress bool, protocol string, peer netip.Addr, port uint16) {
	s.wanted = append(s.wanted, event{container, comm, egress, protocol, netip.AddrPortFrom(peer, port)})
}

func (s *scene) sent(container, comm string, to netip.Addr, port uint16) {
	s.want(container, comm, true, "TCP", to, port)
}

func (s *scene) received(container, comm string, from netip.Addr, port uint16) {
	s.want(container, comm, false, "TCP", from, port)
}

// of are those that a filter lets through.
func (s *scene) of(wanted func(event) bool) (events []event) {
	for _, e := range s.wanted {
		if wanted(e) {
			events = append(events, e)
		}
	}
	return events
}

// Ports, of which those that are closed are never served. The last one is for the tests themselves.
const (
	servedPort    = 80
	hostPort      = 8000
	publishedPort = 8080
	closedPort    = 81
	closedUDPPort = 69
	closedAtHost  = 82
	ownPort       = 99
)

// onHost runs busybox's command on the host.
func onHost(t *testing.T, command string) { sh(t, "busybox %s || true", command) }

func TestContainerd(t *testing.T) {
	prepare(t)
	startContainerd(t)
	web := runContainer(t, "web", "", "httpd", "-f", "-p", "80", "-h", "/www")
	first := runContainer(t, "young", "", "httpd", "-f", "-p", "80", "-h", "/www") // for its name
	start(t, "busybox", "httpd", "-f", "-p", "8000", "-h", "/tmp")

	containers, young, host := watch(t), watch(t, "-c", "young"), watch(t, "--host")
	ready := func(c container) (event, func()) {
		return event{c.name, "httpd", false, "TCP", netip.AddrPortFrom(gateways[0], servedPort)}, func() { onHost(t, get(c.at[0], servedPort)) }
	}
	for w, c := range map[*watcher]container{containers: web, young: first, host: web} {
		e, do := ready(c)
		w.await(t, e, do)
	}
	// What waits is told in its order.
	closed := func(c container) (event, func()) {
		return event{c.name, "", false, "TCP", netip.AddrPortFrom(gateways[0], ownPort)}, func() { onHost(t, get(c.at[0], ownPort)) }
	}
	known := map[*watcher]int{}
	for w, c := range map[*watcher]container{containers: web, young: first, host: web} {
		e, do := closed(c)
		w.await(t, e, do)
		known[w] = w.count(wanted)
	}
	before := sockets(t, containers.cmd.Process.Pid)
	first.remove(t)
	eventually(t, func() error {
		if now := sockets(t, containers.cmd.Process.Pid); now != before-1 {
			return fmt.Errorf("ig has %d sockets after the end of a container, and had %d", now, before)
		}
		return nil
	})

	s := &scene{}
	made := runContainer(t, "young", "", "sh", "-c", fmt.Sprintf(`"%s; exec httpd -f -p 80 -h /www"`, get(web.at[0], servedPort)))
	s.sent("young", "wget", web.at[0], servedPort)
	s.received("web", "httpd", made.at[0], servedPort)
	eventually(t, func() error { // it listens
		if text := sh(t, "cat /proc/%d/comm", made.pid); text != "httpd" {
			return fmt.Errorf("the container is at %s", text)
		}
		return nil
	})
	for family := range web.at {
		talk(t, s, web, made, family)
	}
	published(t, s, web, made)
	inTheHostsNamespace(t, s, web)

	for w, c := range map[*watcher]container{containers: web, young: made, host: web} {
		e, do := closed(c)
		w.again(t, e, do)
	}
	ofContainers := func(e event) bool { return e.container != "" && wanted(e) }
	for name, c := range map[string]struct {
		w      *watcher
		wanted func(event) bool
	}{
		"without options": {containers, ofContainers},
		"-c young":        {young, func(e event) bool { return e.container == "young" && ofContainers(e) }},
		"--host":          {host, wanted},
	} {
		t.Run(name, func(t *testing.T) {
			got := c.w.stop(t, wanted)
			compare(t, got[min(known[c.w], len(got)):], s.of(c.wanted))
			for _, l := range c.w.all() {
				if l.Runtime.Named != "" && (l.Runtime.Name != "containerd" || l.Runtime.Image != imageName || l.Runtime.ID == "") {
					t.Errorf("wanted containerd, an ID and the image %s, got %+v", imageName, l.Runtime)
				}
			}
		})
	}
}

// talk has the host and two containers talk to each other, over IPv4 or IPv6: to servers, and to ports without.
func talk(t *testing.T, s *scene, web, young container, family int) {
	t.Helper()
	gateway, webAt, youngAt := gateways[family], web.at[family], young.at[family]
	young.do(t, get(webAt, servedPort))
	s.sent("young", "wget", webAt, servedPort)
	s.received("web", "httpd", youngAt, servedPort)

	web.do(t, get(youngAt, closedPort))
	s.sent("web", "wget", youngAt, closedPort)
	s.received("young", "", webAt, closedPort)

	onHost(t, get(webAt, servedPort))
	s.sent("", "busybox", webAt, servedPort)
	s.received("web", "httpd", gateway, servedPort)

	onHost(t, get(webAt, closedPort))
	s.sent("", "busybox", webAt, closedPort)
	s.received("web", "", gateway, closedPort)

	sh(t, "bash -c 'echo > /dev/udp/%s/%d'", webAt, closedUDPPort)
	s.want("", "bash", true, "UDP", webAt, closedUDPPort)
	s.want("web", "", false, "UDP", gateway, closedUDPPort)

	web.do(t, get(gateway, hostPort))
	s.sent("web", "wget", gateway, hostPort)
	s.received("", "busybox", webAt, hostPort)

	web.do(t, get(gateway, closedAtHost))
	s.sent("web", "wget", gateway, closedAtHost)
	s.received("", "", webAt, closedAtHost)
}

// published publishes a port of web's at the host's, as CNI's portmap does.
func published(t *testing.T, s *scene, web, young container) {
	t.Helper()
	for _, chain := range []string{"PREROUTING", "OUTPUT"} {
		rule := fmt.Sprintf("%s -p tcp --dport %d -m addrtype --dst-type LOCAL -j DNAT --to-destination %s",
			chain, publishedPort, netip.AddrPortFrom(web.at[0], servedPort))
		sh(t, "iptables -t nat -A %s", rule)
		t.Cleanup(func() { sh(t, "iptables -t nat -D %s", rule) })
	}
	sh(t, "ip netns exec outside busybox %s", get(hostAddress, publishedPort))
	s.received("web", "httpd", outsideAddress, servedPort)

	onHost(t, get(hostAddress, publishedPort)) // it comes from that address, too
	s.sent("", "busybox", web.at[0], servedPort)
	s.received("web", "httpd", hostAddress, servedPort)

	young.do(t, get(gateways[0], publishedPort))
	s.sent("young", "wget", gateways[0], publishedPort)
	s.received("web", "httpd", young.at[0], servedPort)
}

// inTheHostsNamespace has a container talk that has no network namespace of its own: what is closed there is the host's.
func inTheHostsNamespace(t *testing.T, s *scene, web container) {
	t.Helper()
	c := runContainer(t, "hostnet", "--net-host", "sleep", "1000000")
	defer c.remove(t)
	self := netip.MustParseAddr("127.0.0.1")
	c.do(t, get(web.at[0], servedPort))
	s.sent("hostnet", "wget", web.at[0], servedPort)
	s.received("web", "httpd", gateways[0], servedPort)
	c.do(t, get(self, closedAtHost))
	s.sent("hostnet", "wget", self, closedAtHost)
	s.received("", "", self, closedAtHost)
}
