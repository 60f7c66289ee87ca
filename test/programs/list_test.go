// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"encoding/binary"
	"net/netip"
)

// configs is where the programs find testdata, below guestRoot.
const configs = "/etc/programs"

// program is a server as people run it.
type program struct {
	name string
	// command is a shell's command in the root file system. It has the environment's ADDRESS, to listen at, and CONFIG, the path of
	// config with that address in place of the word ADDRESS, and
	// the path of the container's network namespace in place of NETNS.
	command string
	config  string // name of a file in testdata; "" without
	// daemon says that the command ends when the program has become one. Others go on.
	daemon   bool
	services []service
}

// service is a port of a program's and a question that is answered by who serves there.
type service struct {
	network string // "tcp" or "udp"
	port    uint16
	// ask is what a client says. It has no answer before its last byte. Empty: the server speaks first.
	ask string
	// own says that each process that accepts has a listener of its own (SO_REUSEPORT).
	own bool
	// mptcp says that the listener is one of MPTCP, whose inode number is in the file of this name.
	mptcp string
	// published says that the port is a container's by DNAT: who listens on it on the host gets nothing.
	published bool
}

// Ports of the published service on the host and in the container.
const (
	publishedPort = 8081
	containerPort = 80
)

// inodeFile has the Go server's.
const inodeFile = "/run/go-server.inode"

// programs are those that are tested. The place in the list makes the address.
var programs = []program{
	{name: "nginx", config: "nginx.conf", command: "nginx -c $CONFIG", daemon: true, services: []service{{network: "tcp", port: 80, ask: http}}},
	{name: "nginx, reuseport", config: "nginx-reuseport.conf", command: "nginx -c $CONFIG", daemon: true, services: []service{{network: "tcp", port: 80, ask: http, own: true}}},
	{name: "haproxy -W", config: "haproxy.cfg", command: "haproxy -W -D -f $CONFIG -p /run/haproxy.pid", daemon: true, services: []service{{network: "tcp", port: 8443, ask: http}}},
	{name: "apache2 prefork", config: "apache2.conf", command: "apache2 -f $CONFIG -k start", daemon: true, services: []service{{network: "tcp", port: 80, ask: http}}},
	{name: "unbound", config: "unbound.conf", command: "unbound -c $CONFIG", daemon: true, services: dns},
	{name: "dnsmasq", command: "dnsmasq --conf-file=/dev/null --listen-address=$ADDRESS --bind-interfaces --no-resolv --no-hosts " +
		"--address=/example/192.0.2.1 --pid-file=/run/dnsmasq.pid", daemon: true, services: dns},
	{name: "named", config: "named.conf", command: "mkdir -p /run/named && chown bind /run/named && named -c $CONFIG -u bind", daemon: true, services: dns},
	{
		name: "sshd", command: "mkdir -p /run/sshd && /usr/sbin/sshd -f /dev/null -o ListenAddress=$ADDRESS -o PidFile=/run/sshd.pid",
		daemon: true, services: []service{{network: "tcp", port: 22}},
	},
	{
		name: "redis", command: "redis-server --daemonize yes --bind $ADDRESS --protected-mode no --save '' --dir /tmp",
		daemon: true, services: []service{{network: "tcp", port: 6379, ask: "PING\r\n"}},
	},
	{
		name: "postgresql", command: "cd /var/lib/postgresql/*/main && rm -f postmaster.pid && install -d -o postgres /run/postgresql && " +
			"exec setpriv --reuid postgres --regid postgres --clear-groups /usr/lib/postgresql/*/bin/postgres -D $PWD " +
			"-c config_file=$(echo /etc/postgresql/*/main/postgresql.conf) -c listen_addresses=$ADDRESS -c ssl=off -c fsync=off",
		services: []service{{network: "tcp", port: 5432, ask: sslRequest}},
	},
	{name: "postfix", config: "postfix.cf", command: "cp $CONFIG /etc/postfix/main.cf && postfix start", daemon: true, services: []service{{network: "tcp", port: 25}}},
	{name: "chrony", config: "chrony.conf", command: "chronyd -x -f $CONFIG", daemon: true, services: []service{{network: "udp", port: 123, ask: ntp}}},
	{
		name: "memcached", command: "memcached -d -u memcache -l $ADDRESS -P /run/memcached.pid", daemon: true,
		services: []service{{network: "tcp", port: 11211, ask: "version\r\n"}},
	},
	{name: "mosquitto", config: "mosquitto.conf", command: "mosquitto -d -c $CONFIG", daemon: true, services: []service{{network: "tcp", port: 1883, ask: mqttConnect}}}, //nolint:misspell // its name
	{name: "socat, fork", command: "exec socat TCP-LISTEN:7000,bind=$ADDRESS,reuseaddr,fork EXEC:cat", services: echo(7000)},
	{
		name: "busybox httpd", command: "mkdir -p /run/www && echo ok >/run/www/index.html && busybox httpd -p $ADDRESS:80 -h /run/www",
		daemon: true, services: []service{{network: "tcp", port: 80, ask: http}},
	},
	{name: "inetd", config: "inetd.conf", command: "inetd $CONFIG", daemon: true, services: echo(7)},
	{name: "Go (MPTCP)", command: "exec " + goServer + " :8080 " + inodeFile, services: []service{{network: "tcp", port: 8080, ask: "hello\n", mptcp: inodeFile}}},
	{name: "node cluster", config: "cluster.js", command: "exec node $CONFIG", services: []service{{network: "tcp", port: 80, ask: http}}},
	{name: "node cluster, SCHED_NONE", config: "cluster.js", command: "exec env NODE_CLUSTER_SCHED_POLICY=none node $CONFIG", services: []service{{network: "tcp", port: 80, ask: http}}},
	{
		name: "python3 -m http.server", command: "mkdir -p /run/python && cd /run/python && exec python3 -m http.server 8000 --bind $ADDRESS",
		services: []service{{network: "tcp", port: 8000, ask: http}},
	},
	{name: "systemd-socket-activate", command: "exec systemd-socket-activate -l $ADDRESS:9000 " + goServer, services: echo(9000)},
	{name: "systemd-socket-activate -a", command: "exec systemd-socket-activate -a --inetd -l $ADDRESS:9000 cat", services: echo(9000)},
	{
		name: "runc behind docker-proxy", config: "container.json", command: "mkdir -p /run/container/rootfs/bin /run/container/rootfs/proc /run/container/rootfs/www && " +
			"cd /run/container && cp /bin/busybox rootfs/bin && echo ok >rootfs/www/index.html && cp $CONFIG config.json && " +
			"runc run --detach --no-pivot container </dev/null && " +
			"{ docker-proxy -proto tcp -host-ip $ADDRESS -host-port 8081 -container-ip " + containerAddress + " -container-port 80 3>/run/docker-proxy & }",
		daemon: true, services: []service{{network: "tcp", port: publishedPort, ask: http, published: true}},
	},
}

// address is where the program with this place in the list listens.
func address(place int) netip.Addr { return netip.AddrFrom4([4]byte{10, 9, 0, byte(10 + place)}) }

func echo(port uint16) []service { return []service{{network: "tcp", port: port, ask: "hello\n"}} }

// http is a question after which the connection goes on where the server can do so.
const http = "GET / HTTP/1.1\r\nHost: example\r\n\r\n"

// sslRequest is PostgreSQL's, which has an answer without a login: its length and its code.
var sslRequest = string(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 8), 80877103))

// mqttConnect is MQTT 3.1.1's CONNECT of a client without a name: a clean session, no keep-alive.
const mqttConnect = "\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00"

// ntp is a client's question of version 4: all but the first byte may be zero.
var ntp = "\x23" + string(make([]byte, 47))

// query is DNS's for the address of a.example: a header with one question, which asks for a record A, class IN.
const query = "\x2a\x2a\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + "\x01a\x07example\x00\x00\x01\x00\x01"

// dns is over UDP and, behind its length, over TCP.
var dns = []service{
	{network: "udp", port: 53, ask: query},
	{network: "tcp", port: 53, ask: "\x00" + string(rune(len(query))) + query},
}
