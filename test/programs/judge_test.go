// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"gadget.example/network/internal/gadget"
)

// sight is all that was seen of an attempt, while its connection was there.
type sight struct {
	service   service
	client    netip.AddrPort
	before    []process      // who had the listener, before the attempt
	holders   map[int]bool   // who has had it until now
	servers   map[int]bool   // who has the connection
	acceptors map[int]bool   // who accepted it
	earlier   map[int]bool   // who accepted one of the attempts before
	events    []gadget.Event // of the attempt
	named     []process      // by each event
}

func (s *sight) String() string {
	var b strings.Builder
	for i, e := range s.events {
		fmt.Fprintf(&b, "  event: %s %v to %v in namespace %d, retries %d, local %v: %q pid %d tid %d thread %q; now %s\n",
			e.Protocol, e.Src, e.Dst, e.NetNS, e.Retries, e.Local, e.Proc.Comm, e.Proc.PID, e.Proc.TID, e.Thread, s.named[i])
	}
	fmt.Fprintf(&b, "  from %v; the listener is held by: %s\n", s.client, describe(s.holders))
	fmt.Fprintf(&b, "  the connection by: %s\n  accepted by: %s\n  earlier ones by: %s", describe(s.servers), describe(s.acceptors), describe(s.earlier))
	return b.String()
}

// result is a row of the table.
type result struct {
	order            order
	program, network string
	named            map[string]int // name and process ID, and in how many events
	attempts, right  int
	// Attempts that name nobody, one that is dead, one that has no listener, and one that does not accept.
	nobody, dead, holdsNot, servesNot int
}

// enter judges an attempt, and says what is wrong with it.
func (r *result) enter(s *sight) (faults []string) {
	r.attempts++
	somebody := false
	for i, e := range s.events {
		if e.Proc.PID == 0 {
			if !s.service.published {
				faults = append(faults, "nobody is named")
				r.nobody++
			}
			continue
		}
		somebody = true
		r.named[fmt.Sprintf("%s %d", e.Proc.Comm, e.Proc.PID)]++
		if fault, count := r.judge(s, e, s.named[i]); fault != "" {
			faults = append(faults, fault)
			*count++
		}
	}
	switch {
	case len(s.events) == 0:
		faults = append(faults, "no event")
		r.nobody++
	case !somebody && s.service.published:
		faults = append(faults, "nobody is named")
		r.nobody++
	}
	if faults == nil {
		r.right++
	}
	return faults
}

// judge says what is wrong with who is named, and where that is counted.
func (r *result) judge(s *sight, e gadget.Event, p process) (fault string, count *int) {
	serves := true
	if s.service.own && intersect(s.acceptors, s.earlier) {
		serves = s.acceptors[p.pid] // which has a listener of its own, and has accepted on it before
	} else if !s.service.own && len(s.earlier) > 0 {
		serves = s.earlier[p.pid] || s.acceptors[p.pid]
	}
	switch {
	case p.dead:
		return "who is named is dead", &r.dead
	case !s.holders[p.pid]:
		return "who is named does not have the listener", &r.holdsNot
	case s.service.network == "tcp" && !serves:
		return "who is named does not accept, and another has", &r.servesNot
	case e.Proc.Comm != p.name && !slices.ContainsFunc(s.before, func(b process) bool { return b.pid == p.pid && b.name == e.Proc.Comm }):
		return fmt.Sprintf("who is named is %q by now, and was not %q before", p.name, e.Proc.Comm), &r.holdsNot
	}
	return "", nil
}

func TestAWrongNameIsFound(t *testing.T) {
	server, master, other := process{pid: 10, name: "server"}, process{pid: 9, name: "server"}, process{pid: 8, name: "server"}
	event := func(p process) gadget.Event {
		return gadget.Event{Proc: gadget.Process{Comm: "server", PID: uint32(p.pid)}}
	}
	pids := func(all ...process) map[int]bool {
		set := map[int]bool{}
		for _, p := range all {
			set[p.pid] = true
		}
		return set
	}
	tcp := service{network: "tcp"}
	for name, test := range map[string]struct {
		service service
		earlier map[int]bool // who accepted before; server accepts now
		event   gadget.Event
		named   process
		want    string
	}{
		"who accepts":                       {tcp, nil, event(server), server, ""},
		"who listened, first":               {tcp, nil, event(master), master, ""},
		"who listened, later":               {tcp, pids(server), event(master), master, "who is named does not accept, and another has"},
		"who accepted before":               {tcp, pids(master), event(master), master, ""},
		"another one's listener, first":     {service{network: "tcp", own: true}, pids(master), event(master), master, ""},
		"another one's listener, later":     {service{network: "tcp", own: true}, pids(master, server), event(master), master, "who is named does not accept, and another has"},
		"dead":                              {tcp, nil, event(master), process{pid: master.pid, dead: true}, "who is named is dead"},
		"without the listener":              {tcp, nil, event(other), other, "who is named does not have the listener"},
		"another name":                      {tcp, nil, event(server), process{pid: server.pid, name: "cat"}, `who is named is "cat" by now, and was not "server" before`},
		"nobody":                            {tcp, nil, gadget.Event{}, process{dead: true}, "nobody is named"},
		"of a published port, nobody":       {service{network: "tcp", published: true}, nil, gadget.Event{}, process{dead: true}, "nobody is named"},
		"of a published port, who proxies":  {service{network: "tcp", published: true}, nil, event(other), other, "who is named does not have the listener"},
		"of a datagram, who has the socket": {service{network: "udp"}, nil, event(master), master, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := &result{named: map[string]int{}}
			s := &sight{
				service: test.service, earlier: test.earlier, holders: pids(server, master), acceptors: pids(server),
				events: []gadget.Event{test.event}, named: []process{test.named},
			}
			if got := strings.Join(r.enter(s), "; "); got != test.want || (r.right == 1) != (test.want == "") {
				t.Errorf("got %q and %d right, want %q", got, r.right, test.want)
			}
		})
	}
	r := &result{named: map[string]int{}}
	if got := r.enter(&sight{service: tcp}); len(got) != 1 || got[0] != "no event" {
		t.Errorf("without an event: got %q", got)
	}
}

func intersect(a, b map[int]bool) bool {
	for pid := range a {
		if b[pid] {
			return true
		}
	}
	return false
}

// table is all results as Markdown, which can be read as it is.
func table(results []*result) string {
	rows := [][]string{{"Program", "", "Started", "Named (process, events)", "Nobody", "Dead", "Without listener", "Does not accept", "Right"}}
	slices.SortStableFunc(results, func(a, b *result) int { return cmp.Compare(place(a.program), place(b.program)) })
	for _, r := range results {
		var named []string
		for _, name := range slices.Sorted(maps.Keys(r.named)) {
			named = append(named, fmt.Sprintf("%s ×%d", name, r.named[name]))
		}
		rows = append(rows, []string{
			r.program, r.network, string(r.order), strings.Join(named, ", "), count(r.nobody), count(r.dead), count(r.holdsNot), count(r.servesNot),
			fmt.Sprintf("%d of %d", r.right, r.attempts),
		})
	}
	return markdown(rows)
}

func place(name string) int {
	return slices.IndexFunc(programs, func(p program) bool { return p.name == name })
}

func count(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

// markdown lines the columns up.
func markdown(rows [][]string) string {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], len([]rune(cell)), 3)
		}
	}
	var b strings.Builder
	for n, row := range rows {
		for i, cell := range row {
			fmt.Fprintf(&b, "| %-*s ", width[i], cell)
		}
		b.WriteString("|\n")
		if n == 0 {
			for i := range row {
				fmt.Fprintf(&b, "|%s", strings.Repeat("-", width[i]+2))
			}
			b.WriteString("|\n")
		}
	}
	return b.String()
}
