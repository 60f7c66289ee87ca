/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NETWORK_BOOKS_H
#define NETWORK_BOOKS_H

/*
 * The books: which process made which connection, and opened which port of UDP.
 * Written in the context of the process, before the first packet can be on
 * its way, or when the gadget starts; read by the socket filter.
 *
 * An entry is live until its socket gives up the port. It stays, as closed,
 * when a packet that the socket has sent is waiting, for a neighbour's address
 * for example, until the socket is destroyed.
 */

#include <vmlinux.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define GADGET_TYPE_NETWORKING
#include <gadget/macros.h>

#include "family.h"
#include "follow.h"
#include "holders.h"
#include "paths.h"
#include "process.h"
#include "read.h"
#include "socket.h"

/* Sockets that are remembered for one address and port (SO_REUSEPORT). */
#define MAX_SHARED 8

const volatile __u32 connections_max_entries = 8192;
GADGET_PARAM(connections_max_entries);

const volatile __u32 ports_max_entries = 8192;
GADGET_PARAM(ports_max_entries);

const volatile __u32 sockets_max_entries = 12288;
GADGET_PARAM(sockets_max_entries);

/* How far a connection's first SYN has come. */
enum progress {
	ON_ITS_WAY,
	SEEN, /* by the filter; or nobody waits for that any more */
	REPORTED, /* all the same, as it did not get to a device */
};

struct owner {
	__u64 sk;
	__u64 since; /* of the socket's page */
	__u64 number; /* of a port: see socket_number() */
	struct holder
		holder; /* of a port: others can serve it; else all zero */
	__u64 started; /* the process, ns since the boot */
	__u64 called; /* TCP: when it was told to connect, ns since the boot */
	struct gadget_process proc;
	char thread[THREAD_LEN]; /* its name */
	__u32 family; /* of a young process, else 0: see find_family() */
	__u32 device; /* interface that the socket is bound to, or 0 */
	__u32 isn; /* TCP: sequence number of the SYN it sends */
	__u8 progress; /* TCP: enum progress */
	bool ipv6only;
	bool followed; /* the process: see follow.h */
	bool connected; /* takes datagrams of its peer only */
	bool closed;
	bool crowded; /* there was no slot for another one, of another kind */
};

/* An open port: remote address and port are none. */
struct port_key {
	struct tuple local;
	__u64 slot; /* 0 to MAX_SHARED - 1 */
	__u64 pad;
};

/*
 * Where a socket stands in the books, or stood last: its page. The page of one
 * that is gone can still be there. No kprobe runs in a softirq that interrupts
 * another one (kprobe_ftrace_handler()), and that is where many sockets are
 * destroyed; and none runs its program where a preemptible kernel has stopped
 * a bpf() call that reads a value (bpf_prog_active), which can be where a
 * socket gives up its port. So an entry alone proves nothing: has_left().
 */
struct entries {
	__u64 since; /* ns since the boot; tells sockets of one address apart */
	struct tuple connection;
	struct port_key port;
};

/* By both ends: TCP connections, and connected UDP sockets. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct tuple);
	__type(value, struct owner);
} connections SEC(".maps");

/*
 * The connections that have just begun, by the sequence number of their SYN: that
 * is what is left of it when its ends are translated without conntrack.
 */
struct syn_key {
	__u32 netns;
	__u32 isn;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct syn_key);
	__type(value, struct tuple);
} syns SEC(".maps");

/* Of how many connections the first SYN was awaited, and is no more. */
struct progresses {
	__u64 begun;
	__u64 ended;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct progresses);
} progresses SEC(".maps");

static __always_inline void begin_progress(void)
{
	__u32 zero = 0;
	struct progresses *p = bpf_map_lookup_elem(&progresses, &zero);

	if (p)
		__sync_fetch_and_add(&p->begun, 1);
}

static __always_inline void end_progress(struct owner *owner, __u8 progress)
{
	struct progresses *p;
	__u32 zero = 0;

	if (owner->progress == ON_ITS_WAY) {
		p = bpf_map_lookup_elem(&progresses, &zero);
		if (p)
			__sync_fetch_and_add(&p->ended, 1);
	}
	owner->progress = progress;
}

/* By the local end: UDP sockets. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct port_key);
	__type(value, struct owner);
} ports SEC(".maps");

/*
 * Where a port can be in the books: most have one socket. By the kind of its address,
 * the port's last bits, and the slot. What was used once stays so, whoever had it, as
 * bytes alone can be set by several CPUs at once.
 */
#define PORT_BUCKETS 4096

enum local_kind {
	LOCAL_ADDRESS,
	ANY_IPV4,
	ANY_IPV6, /* and IPv4, but for sockets of IPv6 alone */
	LOCAL_KINDS,
};

union slots {
	__u8 of[MAX_SHARED];
	__u64 all;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LOCAL_KINDS *PORT_BUCKETS);
	__type(key, __u32);
	__type(value, union slots);
} used_slots SEC(".maps");

static __always_inline __u32 bucket_of(const struct tuple *local)
{
	enum local_kind kind = LOCAL_ADDRESS;

	if (is_any(&local->local))
		kind = local->version == 6 ? ANY_IPV6 : ANY_IPV4;
	return kind * PORT_BUCKETS + (local->local_port & (PORT_BUCKETS - 1));
}

/* As in union slots. These are not static: verified once. */
__noinline __u64 slots_in(__u32 bucket)
{
	union slots *slots = bpf_map_lookup_elem(&used_slots, &bucket);

	return slots ? slots->all : 0;
}

__noinline int use_slot(__u32 bucket, __u32 slot)
{
	union slots *slots = bpf_map_lookup_elem(&used_slots, &bucket);

	if (slots)
		slots->of[slot % MAX_SHARED] = true;
	return 0;
}

static __always_inline bool is_used(__u64 slots, int slot)
{
	union slots used = { .all = slots };

	return used.of[slot];
}

/* By the address of struct sock. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 12288);
	__type(key, __u64);
	__type(value, struct entries);
} sockets SEC(".maps");

/* An entry, unless another socket has taken it over. */
static __always_inline struct owner *own_entry(void *map, const void *key,
					       __u64 sk)
{
	struct owner *owner = bpf_map_lookup_elem(map, key);

	return owner && owner->sk == sk ? owner : NULL;
}

static __always_inline void erase(void *map, const void *key, __u64 sk)
{
	if (own_entry(map, key, sk))
		bpf_map_delete_elem(map, key);
}

/* The socket's page; a new one if it has none. */
static __always_inline struct entries *entries_of(__u64 sk)
{
	static const struct entries none = {};
	struct entries *entries;

	bpf_map_update_elem(&sockets, &sk, &none, BPF_NOEXIST);
	entries = bpf_map_lookup_elem(&sockets, &sk);
	if (entries && !entries->since)
		entries->since = bpf_ktime_get_ns();
	return entries;
}

static __always_inline void erase_entries(const struct entries *entries,
					  __u64 sk)
{
	erase(&connections, &entries->connection, sk);
	erase(&ports, &entries->port, sk);
}

/*
 * A page for a socket that has no place in the books, whatever one of the same
 * address has left there.
 */
static __always_inline struct entries *begin_page(__u64 sk)
{
	struct entries *entries = entries_of(sk);

	if (!entries)
		return NULL;
	erase_entries(entries, sk);
	entries->since = bpf_ktime_get_ns();
	return entries;
}

/* Nothing of the socket is left, and nothing that it has sent. */
static __always_inline void forget_socket(struct sock *sk)
{
	__u64 address = (__u64)sk;
	struct entries *entries = bpf_map_lookup_elem(&sockets, &address);

	if (!entries)
		return;
	erase_entries(entries, address);
	forget_paths(address);
	bpf_map_delete_elem(&sockets, &address);
}

/*
 * Whether the socket's page is still there. When it had to make way, nobody
 * hears of the socket's end: what is left of it in the books counts no more.
 */
static __always_inline bool has_page(const struct owner *owner)
{
	__u64 sk = owner->sk;
	struct entries *entries = bpf_map_lookup_elem(&sockets, &sk);

	return entries && entries->since == owner->since;
}

/*
 * Whether something that a socket has sent from a port has not left yet. It
 * counts when the socket has its page thereafter.
 */
static __always_inline bool is_sending(const struct owner *owner, __u16 port)
{
	struct sock *sk = (void *)owner->sk;

	return has_unsent(sk) && local_port(typed(sk)) == port;
}

/* Whether the socket has no longer the port that it is booked with. */
static __always_inline bool has_left(const struct owner *owner, __u16 port)
{
	struct sock *sk = (void *)owner->sk;
	__u16 num;

	return !BPF_CORE_READ_INTO(&num, sk, __sk_common.skc_num) &&
	       num != port;
}

/* A task's process as the owner of a socket; false: it has none. */
static __always_inline bool set_owner(struct owner *owner, struct sock *sk,
				      struct task_struct *task)
{
	if (is_kernel_thread(task))
		return false;

	owner->sk = (__u64)sk;
	owner->device = READ(sk, __sk_common.skc_bound_dev_if);
	owner->ipv6only = is_ipv6only(sk);
	owner->started = started_at(task);
	owner->family = find_family(task);
	owner->followed = is_followed(task);
	read_process(&owner->proc, owner->thread, task);
	return true;
}

/* What a hook can interrupt has an owner of its own. */
enum new_owner {
	OF_HOOK,
	OF_ITERATOR,
	NEW_OWNERS,
};

/*
 * Too large for the stack, where the verifier follows each value of it; this CPU's:
 * hooks do not interrupt each other.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NEW_OWNERS);
	__type(key, __u32);
	__type(value, struct owner);
} new_owners SEC(".maps");

/* All zero. */
static __always_inline struct owner *new_owner(enum new_owner of)
{
	__u32 index = of;
	struct owner *owner = bpf_map_lookup_elem(&new_owners, &index);

	if (owner)
		__builtin_memset(owner, 0, sizeof(*owner));
	return owner;
}

/* Books a socket of the current process that is about to talk to one peer. */
static __always_inline void book_connection(struct sock *sk, __u8 proto)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct owner *owner = new_owner(OF_HOOK);
	struct tuple key = {};
	struct syn_key syn = {};
	struct entries *entries;

	if (!owner || !read_socket(sk, proto, &key))
		return;
	if (!set_owner(owner, sk, task)) {
		forget_socket(sk);
		bpf_map_delete_elem(&connections, &key);
		return;
	}

	if (proto == IPPROTO_TCP) {
		entries = begin_page(owner->sk);
		owner->isn = initial_sequence(sk);
		owner->called = bpf_ktime_get_boot_ns();
		syn.netns = key.netns;
		syn.isn = owner->isn;
		bpf_map_update_elem(&syns, &syn, &key, BPF_ANY);
	} else { /* it has its port, and perhaps another peer */
		entries = entries_of(owner->sk);
		if (entries)
			erase(&connections, &entries->connection, owner->sk);
	}
	if (!entries)
		return;
	owner->since = entries->since;
	book_paths(owner->sk, owner->since);
	bpf_map_update_elem(&connections, &key, owner, BPF_ANY);
	entries->connection = key;
	if (proto == IPPROTO_TCP)
		begin_progress();
}

static __always_inline void read_port(struct sock *sk, struct port_key *key)
{
	struct tuple *local = &key->local;

	read_socket(sk, IPPROTO_UDP, local);
	__builtin_memset(&local->remote, 0, sizeof(local->remote));
	local->remote_port = 0;
}

/* Whether nobody else uses the slot any more. */
static __always_inline bool is_free(const struct owner *taken,
				    const struct owner *owner, __u16 port)
{
	return (taken->closed && !is_sending(taken, port)) ||
	       taken->sk == owner->sk || !has_page(taken);
}

/*
 * Takes the first slot that is free. When there is none it may be no loss: of
 * a group of SO_REUSEPORT any socket is named.
 */
static __always_inline bool take_slot(struct port_key *key,
				      const struct owner *owner,
				      bool of_a_group)
{
	__u32 bucket = bucket_of(&key->local);
	struct owner *taken = NULL;

	for (int i = 0; i < MAX_SHARED; i++) {
		key->slot = i;
		use_slot(bucket, i);
		if (!bpf_map_update_elem(&ports, key, owner, BPF_NOEXIST))
			return true;
		taken = bpf_map_lookup_elem(&ports, key);
		if (taken && is_free(taken, owner, key->local.local_port))
			return !bpf_map_update_elem(&ports, key, owner,
						    BPF_ANY);
	}
	if (taken && !of_a_group)
		taken->crowded = true;
	return false;
}

/* The owner of a UDP socket that has a port; false: it has none. */
static __always_inline bool set_port_owner(struct owner *owner, struct sock *sk,
					   struct task_struct *task)
{
	if (!set_owner(owner, sk, task))
		return false;
	owner->number = socket_number(sk);
	set_holder(&owner->holder, task);
	return true;
}

/* Books a UDP socket of the current process that has a port. */
static __always_inline void book_port(struct sock *sk)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct port_key key = {};
	struct owner *owner = new_owner(OF_HOOK);
	struct entries *entries;

	read_port(sk, &key);
	if (!owner || !key.local.local_port)
		return;
	if (!set_port_owner(owner, sk, task)) {
		forget_socket(sk);
		return;
	}

	entries = begin_page(owner->sk);
	if (!entries)
		return;
	owner->since = entries->since;
	book_paths(owner->sk, owner->since);
	if (take_slot(&key, owner, is_of_group(sk) && !owner->device))
		entries->port = key;
}

static __always_inline struct owner *booked_port(__u64 sk)
{
	struct entries *entries = bpf_map_lookup_elem(&sockets, &sk);

	return entries ? own_entry(&ports, &entries->port, sk) : NULL;
}

/* A datagram socket has got a peer, or lost it. */
static __always_inline void book_peer(struct sock *sk)
{
	struct owner *owner = booked_port((__u64)sk);

	book_connection(sk, IPPROTO_UDP);
	if (owner)
		owner->connected = true;
}

static __always_inline void unbook_peer(struct sock *sk)
{
	__u64 address = (__u64)sk;
	struct entries *entries = bpf_map_lookup_elem(&sockets, &address);
	struct owner *owner = booked_port(address);

	if (entries)
		erase(&connections, &entries->connection, address);
	if (owner)
		owner->connected = false;
}

static __always_inline struct owner *booked_connection(__u64 sk)
{
	struct entries *entries = bpf_map_lookup_elem(&sockets, &sk);

	return entries ? own_entry(&connections, &entries->connection, sk) :
			 NULL;
}

/*
 * A task was found to hold a UDP socket, which has nothing in the books if it is
 * older than the gadget. Its number says which of several got their ports first, as
 * a time does of those that are younger. Of several processes the first counts, but
 * for process 1.
 */
static __always_inline void book_older_port(struct sock *sk, __u64 number,
					    struct task_struct *task,
					    __u32 descriptor)
{
	struct entries page = { .since = number }, *entries;
	struct owner *owner = new_owner(OF_ITERATOR), *port;
	struct port_key key = {};
	__u64 address = (__u64)sk;

	read_port(sk, &key);
	if (!owner || !key.local.local_port || !set_port_owner(owner, sk, task))
		return;
	owner->since = number;
	owner->holder.descriptor = descriptor;
	if (bpf_map_update_elem(&sockets, &address, &page, BPF_NOEXIST)) {
		port = booked_port(address);
		if (port && port->since == number &&
		    port->holder.process.pid == INIT_PID) {
			port->holder = owner->holder;
			port->proc = owner->proc;
		}
		return;
	}
	read_socket(sk, IPPROTO_UDP, &page.connection);
	owner->connected = page.connection.remote_port;
	if (take_slot(&key, owner, is_of_group(sk) && !owner->device))
		page.port = key;
	if (owner->connected)
		bpf_map_update_elem(&connections, &page.connection, owner,
				    BPF_ANY);
	else
		__builtin_memset(&page.connection, 0, sizeof(page.connection));
	entries = bpf_map_lookup_elem(&sockets, &address);
	if (entries && entries->since == number)
		*entries = page;
}

/* The same of a connection whose SYN is sent again. */
static __always_inline void book_older_connection(struct sock *sk, __u64 number,
						  struct task_struct *task)
{
	struct entries page = { .since = number };
	struct owner *owner = new_owner(OF_ITERATOR);
	__u64 address = (__u64)sk;

	if (!owner || !read_socket(sk, IPPROTO_TCP, &page.connection) ||
	    !set_owner(owner, sk, task))
		return;
	owner->since = number;
	owner->isn = initial_sequence(sk) - 1; /* it has been sent */
	owner->progress = SEEN;
	if (!bpf_map_update_elem(&sockets, &address, &page, BPF_NOEXIST))
		bpf_map_update_elem(&connections, &page.connection, owner,
				    BPF_NOEXIST);
}

/* A task was found to have an open file, when the gadget started. */
static __always_inline void book_older(struct file *file,
				       struct task_struct *task,
				       __u32 descriptor)
{
	struct file *self = typed(file);
	struct socket *socket = FIELD(self, private_data);
	__u64 number = FIELD(self, f_inode, i_ino);
	struct sock *sk;
	__u8 state;

	if (!is_socket(file, number))
		return;
	sk = READ(socket, sk);
	state = READ(sk, __sk_common.skc_state);
	if (is_socket_of(sk, IPPROTO_UDP))
		book_older_port(sk, number, task, descriptor);
	else if (!is_socket_of(sk, IPPROTO_TCP))
		return;
	else if (state == TCP_LISTEN_STATE)
		book_older_listener(number, task, descriptor);
	else if (state == TCP_SYN_SENT_STATE)
		book_older_connection(sk, number, task);
}

/* The socket gives up its port: what comes there is not for it any more. */
static __always_inline void close_port(struct sock *sk)
{
	struct owner *port, *connection;

	if (!has_unsent(sk)) {
		forget_socket(sk);
		return;
	}
	port = booked_port((__u64)sk);
	if (port)
		port->closed = true;
	connection = booked_connection((__u64)sk);
	if (connection)
		connection->closed = true;
}

/*
 * A function's argument, from its entry to its return. One of each kind can
 * be under way in a thread.
 */
enum call {
	CALL_GET_PORT,
	CALL_CONNECT_IPV4,
	CALL_CONNECT_IPV6,
	CALL_CONNECT_UNIX,
	CALL_REQUEST, /* by processor */
};

struct call_key {
	__u64 thread;
	__u64 call;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct call_key);
	__type(value, struct sock *);
} calls SEC(".maps");

static __always_inline void enter(enum call call, struct sock *sk)
{
	struct call_key key = { bpf_get_current_pid_tgid(), call };

	bpf_map_update_elem(&calls, &key, &sk, BPF_ANY);
}

/* The socket of the call that returns. */
static __always_inline struct sock *leave(enum call call)
{
	struct call_key key = { bpf_get_current_pid_tgid(), call };
	struct sock **sk = bpf_map_lookup_elem(&calls, &key);
	struct sock *found = sk ? *sk : NULL;

	bpf_map_delete_elem(&calls, &key);
	return found;
}

#endif
