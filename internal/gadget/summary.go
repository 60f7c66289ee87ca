// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Summary is what became of the attempts of one run. Each that the filters let
// through is in one of Reported, Withheld and Lost, and in no other.
type Summary struct {
	Reported uint64 // attempts, each told by an event
	Withheld uint64 // attempts that the rate limit, or a full buffer, held back
	Lost     uint64 // attempts whose event the kernel's buffer (ring) had no room for

	// Established and Failed are how many of them are known to have ended so, with
	// the parameter "lifecycle".
	Established, Failed uint64
	// OutcomesLost are events of the same kind that there was no room for.
	OutcomesLost uint64
	// Unended are attempts, and connections, that go on as the run ends. Forgotten
	// are those that were to be followed, and had to make way.
	Unended, Forgotten uint64

	// WithoutBuffer is how many were withheld on CPUs that have no buffer: they
	// were offline when the gadget started, or meanwhile.
	WithoutBuffer uint64

	// LeftOutSent and LeftOutReceived are attempts that were not let through
	// because their process is not known: the filters LeftOutBy, or the command that
	// was run, ask for some processes alone.
	LeftOutSent, LeftOutReceived uint64
	LeftOutBy                    []string

	// Unserved are attempts that a listener took of which it is not known who serves
	// it: they name nobody, and are among the others.
	Unserved uint64

	// Running is how many processes a command has left: what they attempt from now on
	// is not reported.
	Running int

	// Unfollowed is how many processes of a command there was no place for: what they
	// and theirs attempted is not reported.
	Unfollowed uint64

	// Late is how many times a process had gone on in a network namespace that it had
	// just entered before that was watched: what it did meanwhile is not reported.
	Late uint64

	// TalkedTo are daemons that those who are followed have talked to on this host:
	// paths of Unix sockets, and addresses. What these do for them is not reported.
	TalkedTo []string

	// ReaderLost is how many records the reader of the rings was told that it has
	// missed: as many as Lost, but for events that the kernel refused for another
	// reason than a full ring.
	ReaderLost uint64

	// Owners are those whose attempts were withheld, most of them first. Together
	// they have Withheld, or fewer: attempts of too many owners were withheld at
	// once.
	Owners []Withheld
}

// Withheld is how many attempts of an owner the rate limit held back.
type Withheld struct {
	Owner
	Attempts uint64
}

// Owner is whose attempts the rate limit counts together; in a Summary, those of
// all network namespaces are.
type Owner struct {
	PID    uint32 // of the process in the initial namespace; 0: nobody is known
	Comm   string // as the last attempt had it
	Egress bool   // what it sent; false: what it received
}

func (o Owner) String() string {
	if o.PID == 0 {
		return "nobody " + o.direction()
	}
	return fmt.Sprintf("%s %d %s", printable(o.Comm), o.PID, o.direction())
}

func (o Owner) direction() string {
	if o.Egress {
		return "sent"
	}
	return "received"
}

// printable keeps a name, which a process chooses, within its line.
func printable(name string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, name)
}

// LostError says that the kernel reported more events than were read in time.
type LostError struct {
	Samples uint64 // events lost
}

func (e *LostError) Error() string {
	return fmt.Sprintf("%s lost: more came than could be read; narrow what is reported with a filter or --rate-limit", count(e.Samples, "event was", "events were"))
}

// Err is a *LostError if anything was lost, for who cannot do without it.
func (s Summary) Err() error {
	if lost := max(s.Lost+s.OutcomesLost, s.ReaderLost); lost > 0 {
		return &LostError{Samples: lost}
	}
	return nil
}

// mostOwners is how many of them a line names.
const mostOwners = 3

// String is one line: "3 attempts reported, 9 withheld by the rate limit
// (flood 4242 sent: 9), 0 lost".
func (s Summary) String() string {
	withheld := fmt.Sprintf("%d withheld by the rate limit", s.Withheld)
	if owners := s.owners(); len(owners) > 0 {
		withheld += " (" + strings.Join(owners, ", ") + ")"
	}
	line := count(s.Reported, "attempt", "attempts") + " reported"
	if s.Established+s.Failed > 0 {
		line += fmt.Sprintf(" (%d established, %d failed)", s.Established, s.Failed)
	}
	line += fmt.Sprintf(", %s, %d lost", withheld, s.Lost)
	if s.OutcomesLost > 0 {
		line += fmt.Sprintf("; how they went on: %s lost", count(s.OutcomesLost, "event", "events"))
	}
	if s.WithoutBuffer > 0 {
		line += fmt.Sprintf("; %d of those withheld were on CPUs that have no buffer, as they were offline when the gadget started or since", s.WithoutBuffer)
	}
	return line
}

// Unknown is a line about attempts whose process is not known, which were left
// out, or nothing. What is received for nobody is no command's.
func (s Summary) Unknown() string {
	n, by := s.LeftOutSent+s.LeftOutReceived, "left out by "+strings.Join(s.LeftOutBy, " and ")
	if len(s.LeftOutBy) == 0 {
		n, by = s.LeftOutSent, "left out: only the command's are reported"
	}
	if n == 0 {
		return ""
	}
	return count(n, "attempt whose process is not known was", "attempts whose process is not known were") + " " + by
}

func (s Summary) owners() []string {
	var all []string
	known := uint64(0)
	groups := s.groups()
	for i, g := range groups {
		known += g.Attempts
		if i < mostOwners {
			all = append(all, fmt.Sprintf("%s: %d", g, g.Attempts))
		}
	}
	if more := len(groups) - mostOwners; more > 0 {
		all = append(all, fmt.Sprintf("and %d more", more))
	}
	if known < s.Withheld {
		all = append(all, fmt.Sprintf("unknown: %d", s.Withheld-known))
	}
	return all
}

// Notes are lines about what is not in the report, and is no attempt that was seen.
func (s Summary) Notes() (lines []string) {
	if s.Running > 0 {
		lines = append(lines, fmt.Sprintf("%s of the command %s still running; --wait waits for them",
			count(uint64(s.Running), "process", "processes"), isOrAre(s.Running)))
	}
	if s.Unfollowed > 0 {
		lines = append(lines, fmt.Sprintf("%s of the command could not be followed: too many at once; see --max-followed",
			count(s.Unfollowed, "process", "processes")))
	}
	if s.Unended > 0 {
		lines = append(lines, fmt.Sprintf("%s on: how they end is not in this report", count(s.Unended, "attempt or connection goes", "attempts or connections go")))
	}
	if s.Forgotten > 0 {
		lines = append(lines, fmt.Sprintf("how %s is not known: too many at once; see --max-lifecycles", count(s.Forgotten, "attempt went on", "attempts went on")))
	}
	if s.Unserved > 0 {
		lines = append(lines, count(s.Unserved, "attempt was", "attempts were")+" received by a listener of which it is not known who serves it")
	}
	if s.Late > 0 {
		lines = append(lines, fmt.Sprintf("%s in a network namespace before it was watched: what it did first there is not reported",
			count(s.Late, "process went on", "processes went on")))
	}
	return lines
}

// Beyond is a line about who has done what is not in the report, or nothing.
func (s Summary) Beyond() string {
	if len(s.TalkedTo) == 0 {
		return ""
	}
	names := s.TalkedTo[:min(len(s.TalkedTo), mostTalkedTo)]
	if more := len(s.TalkedTo) - len(names); more > 0 {
		names = append(slices.Clone(names), fmt.Sprintf("and %d more", more))
	}
	return "it talked to " + strings.Join(names, ", ") + ": what they did for it is not in this report"
}

// mostTalkedTo is how many of them a line names.
const mostTalkedTo = 8

func isOrAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

// group are owners of one name and direction.
type group struct {
	Withheld
	processes int
}

func (g group) String() string {
	if g.processes == 1 {
		return g.Owner.String()
	}
	return fmt.Sprintf("%s, %d processes, %s", printable(g.Comm), g.processes, g.direction())
}

// groups has each owner by itself, or those of one name together where a line
// cannot name them all.
func (s Summary) groups() []group {
	type key struct {
		comm   string
		nobody bool
		egress bool
	}
	var groups []group
	index := map[key]int{}
	for _, o := range s.Owners {
		k := key{o.Comm, o.PID == 0, o.Egress}
		i, ok := index[k]
		if !ok || len(s.Owners) <= mostOwners {
			index[k] = len(groups)
			groups = append(groups, group{o, 1})
			continue
		}
		groups[i].Attempts += o.Attempts
		groups[i].processes++
	}
	slices.SortStableFunc(groups, func(a, b group) int { return cmp.Compare(b.Attempts, a.Attempts) })
	return groups
}

func count(n uint64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
