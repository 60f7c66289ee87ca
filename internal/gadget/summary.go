// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"fmt"
	"strings"
	"unicode"
)

// Summary is what became of the attempts of one run. Each that the filters let
// through is in one of Reported, Withheld and Lost, and in no other.
type Summary struct {
	Reported uint64 // attempts, each told by an event
	Withheld uint64 // attempts that the rate limit held back
	Lost     uint64 // attempts whose event the kernel's buffer (ring) had no room for

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
	direction := "received"
	if o.Egress {
		direction = "sent"
	}
	if o.PID == 0 {
		return "nobody " + direction
	}
	return fmt.Sprintf("%s %d %s", printable(o.Comm), o.PID, direction)
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
	if lost := max(s.Lost, s.ReaderLost); lost > 0 {
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
	return fmt.Sprintf("%s reported, %s, %d lost", count(s.Reported, "attempt", "attempts"), withheld, s.Lost)
}

func (s Summary) owners() []string {
	var all []string
	known := uint64(0)
	for i, o := range s.Owners {
		known += o.Attempts
		if i < mostOwners {
			all = append(all, fmt.Sprintf("%s: %d", o.Owner, o.Attempts))
		}
	}
	if more := len(s.Owners) - mostOwners; more > 0 {
		all = append(all, fmt.Sprintf("and %d more", more))
	}
	if known < s.Withheld {
		all = append(all, fmt.Sprintf("unknown: %d", s.Withheld-known))
	}
	return all
}

func count(n uint64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
