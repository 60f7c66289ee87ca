// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"github.com/inspektor-gadget/inspektor-gadget/pkg/params"
)

// The gadget's parameters that take less than their type holds.
const (
	commParam  = "comm"
	sizePrefix = "max-" // of a table of the gadget
)

// maxComm is TASK_COMM_LEN of include/linux/sched.h without the NUL, in bytes:
// the kernel cuts what is longer.
const maxComm = 15

// maxDuration is math.MaxInt64 nanoseconds, in whole hours.
const maxDuration = "2562047h"

// CheckValue says in one line what is wrong with the value of a parameter and
// what would be right: "--port 70000: at most 65535". Wrong is what IG refuses,
// and what it would take though the kernel has no such name or table.
func CheckValue(p *params.ParamDesc, value string) error {
	if err := p.Validate(value); err != nil {
		return WrongValue(p, value, err)
	}
	switch {
	case p.Key == commParam && len(value) > maxComm:
		return wrong(p, value, fmt.Sprintf("a process's name has at most %d bytes; give its first %[1]d: %q", maxComm, value[:maxComm]))
	case strings.HasPrefix(p.Key, sizePrefix) && strings.Trim(value, "0") == "":
		return wrong(p, value, "at least 1")
	}
	return nil
}

// WrongValue is CheckValue's error for a value that is known to be wrong, by the
// error of IG or of package pflag, whose names for types are IG's.
func WrongValue(p *params.ParamDesc, value string, refusal error) error {
	number, isNumber := numbers[p.TypeHint]
	switch {
	case len(p.PossibleValues) > 0:
		return wrong(p, value, "give one of "+strings.Join(p.PossibleValues, ", "))
	case isNumber:
		return wrong(p, value, number.lacks(value, refusal))
	case p.TypeHint == params.TypeBool:
		return wrong(p, value, "give true or false")
	case p.TypeHint == params.TypeDuration:
		return wrong(p, value, "not a duration of at most "+maxDuration+"; give a number with its unit, such as 10s, 5m or 1h")
	case p.TypeHint == params.TypeIP:
		return wrong(p, value, "not an IP address")
	}
	return fmt.Errorf("--%s %s: %w", p.Key, word(value), refusal)
}

func wrong(p *params.ParamDesc, value, why string) error {
	separator := " "
	if p.IsBoolFlag() {
		separator = "=" // the command line takes no other
	}
	return fmt.Errorf("--%s%s%s: %s", p.Key, separator, word(value), why)
}

// word is a value as it can stand in a line: quoted, unless it is plainly one word.
func word(value string) string {
	quoted := strconv.Quote(value)
	if value == "" || strings.Contains(value, " ") || quoted != `"`+value+`"` {
		return quoted
	}
	return value
}

// numberType is what the values of a type are, and the first and last of them.
type numberType struct{ kind, least, most string }

var numbers = map[params.TypeHint]numberType{
	params.TypeInt:     whole(math.MinInt, math.MaxInt),
	params.TypeInt8:    whole(math.MinInt8, math.MaxInt8),
	params.TypeInt16:   whole(math.MinInt16, math.MaxInt16),
	params.TypeInt32:   whole(math.MinInt32, math.MaxInt32),
	params.TypeInt64:   whole[int64](math.MinInt64, math.MaxInt64),
	params.TypeUint:    whole[uint](0, math.MaxUint),
	params.TypeUint8:   whole(0, math.MaxUint8),
	params.TypeUint16:  whole(0, math.MaxUint16),
	params.TypeUint32:  whole[uint32](0, math.MaxUint32),
	params.TypeUint64:  whole[uint64](0, math.MaxUint64),
	params.TypeFloat32: {"number", fmt.Sprint(-math.MaxFloat32), fmt.Sprint(math.MaxFloat32)},
	params.TypeFloat64: {"number", fmt.Sprint(-math.MaxFloat64), fmt.Sprint(math.MaxFloat64)},
}

func whole[T any](least, most T) numberType {
	return numberType{"whole number in decimal digits", fmt.Sprint(least), fmt.Sprint(most)}
}

var digits = regexp.MustCompile(`^-?[0-9]+$`)

// lacks says what a value lacks to be a number of the type.
func (n numberType) lacks(value string, refusal error) string {
	// Package strconv takes a minus before an unsigned number for bad syntax.
	if !errors.Is(refusal, strconv.ErrRange) && !digits.MatchString(value) {
		return fmt.Sprintf("not a %s; give one from %s to %s", n.kind, n.least, n.most)
	}
	if strings.HasPrefix(value, "-") {
		return "at least " + n.least
	}
	return "at most " + n.most
}
