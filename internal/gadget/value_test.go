// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"errors"
	"math/big"
	"os"
	"strings"
	"testing"

	"github.com/inspektor-gadget/inspektor-gadget/pkg/params"

	"gadget.example/network/internal/gadget/image"
)

func TestAWrongValueIsToldInPlainWords(t *testing.T) {
	port := &params.ParamDesc{Key: "port", TypeHint: params.TypeUint16}
	change := &params.ParamDesc{Key: "change", TypeHint: params.TypeInt8}
	share := &params.ParamDesc{Key: "share", TypeHint: params.TypeFloat64}
	comm := &params.ParamDesc{Key: "comm", TypeHint: params.TypeString}
	egress := &params.ParamDesc{Key: "egress-only", TypeHint: params.TypeBool}
	timeout := &params.ParamDesc{Key: "timeout", TypeHint: params.TypeDuration}
	for _, test := range []struct {
		param *params.ParamDesc
		value string
		want  string
	}{
		{port, "70000", "--port 70000: at most 65535"},
		{port, "99999999999999999999999", "--port 99999999999999999999999: at most 65535"},
		{port, "-1", "--port -1: at least 0"},
		{port, "http", "--port http: not a whole number in decimal digits; give one from 0 to 65535"},
		{port, "0x50", "--port 0x50: not a whole number in decimal digits; give one from 0 to 65535"},
		{port, "1.5", "--port 1.5: not a whole number in decimal digits; give one from 0 to 65535"},
		{port, "-", "--port -: not a whole number in decimal digits; give one from 0 to 65535"},
		{port, "", `--port "": not a whole number in decimal digits; give one from 0 to 65535`},
		{port, "8 0\n", `--port "8 0\n": not a whole number in decimal digits; give one from 0 to 65535`},
		{change, "128", "--change 128: at most 127"},
		{change, "+128", "--change +128: at most 127"},
		{change, "-129", "--change -129: at least -128"},
		{change, "much", "--change much: not a whole number in decimal digits; give one from -128 to 127"},
		{share, "1e999", "--share 1e999: at most 1.7976931348623157e+308"},
		{share, "-1e999", "--share -1e999: at least -1.7976931348623157e+308"},
		{share, "half", "--share half: not a number; give one from -1.7976931348623157e+308 to 1.7976931348623157e+308"},
		{&params.ParamDesc{Key: "max-flows", TypeHint: params.TypeUint32}, "00", "--max-flows 00: at least 1"},
		{egress, "maybe", "--egress-only=maybe: give true or false"},
		{egress, "", `--egress-only="": give true or false`},
		{timeout, "soon", "--timeout soon: not a duration of at most 2562047h; give a number with its unit, such as 10s, 5m or 1h"},
		{timeout, "5", "--timeout 5: not a duration of at most 2562047h; give a number with its unit, such as 10s, 5m or 1h"},
		{&params.ParamDesc{Key: "from", TypeHint: params.TypeIP}, "1.2.3", "--from 1.2.3: not an IP address"},
		{&params.ParamDesc{Key: "pull", PossibleValues: []string{"always", "never"}}, "x", "--pull x: give one of always, never"},
		{comm, "a-name-that-is-too-long", `--comm a-name-that-is-too-long: a process's name has at most 15 bytes; give its first 15: "a-name-that-is-"`},
		{comm, "fünfzehn-zeiche", `--comm fünfzehn-zeiche: a process's name has at most 15 bytes; give its first 15: "fünfzehn-zeich"`},
	} {
		t.Run(test.param.Key+" "+test.value, func(t *testing.T) {
			err := CheckValue(test.param, test.value)
			if err == nil || err.Error() != test.want {
				t.Errorf("wanted %q\ngot    %v", test.want, err)
			}
		})
	}
}

func TestARightValueIsAccepted(t *testing.T) {
	for _, test := range []struct {
		key   string
		hint  params.TypeHint
		value string
	}{
		{"port", params.TypeUint16, "65535"},
		{"port", params.TypeUint16, "0"},
		{"max-flows", params.TypeUint32, "10"},
		{"rate-limit", params.TypeUint32, "0"},
		{"egress-only", params.TypeBool, "TRUE"},
		{"comm", params.TypeString, ""},
		{"comm", params.TypeString, "fifteen-bytes-1"},
		{"filter", params.TypeString, "proc.comm==a-name-that-is-too-long"},
	} {
		t.Run(test.key+" "+test.value, func(t *testing.T) {
			if err := CheckValue(&params.ParamDesc{Key: test.key, TypeHint: test.hint}, test.value); err != nil {
				t.Errorf("wanted %q accepted, got %v", test.value, err)
			}
		})
	}
}

func TestTheFirstAndLastNumbersToldAreThoseOfIG(t *testing.T) {
	for hint, number := range numbers {
		p := &params.ParamDesc{Key: "n", TypeHint: hint}
		for _, end := range []struct {
			value string
			step  int64
		}{{number.least, -1}, {number.most, 1}} {
			if err := p.Validate(end.value); err != nil {
				t.Errorf("%s: wanted %s accepted, got %v", hint, end.value, err)
			}
			beyond, isWhole := new(big.Int).SetString(end.value, 10)
			if !isWhole {
				continue // rounded: the next float
			}
			beyond.Add(beyond, big.NewInt(end.step))
			if err := p.Validate(beyond.String()); err == nil {
				t.Errorf("%s: wanted %s refused, got it accepted", hint, beyond)
			}
		}
	}
}

func TestAWrongParameterOfARunIsNamed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("must be root: IG makes eBPF maps when it reads an image")
	}
	for key, test := range map[string]struct{ value, want string }{
		"port":         {"70000", "--port 70000: at most 65535"},
		"rate-limit":   {"5000000000", "--rate-limit 5000000000: at most 4294967295"},
		"max-attempts": {"0", "--max-attempts 0: at least 1"},
		"udp-flows":    {"maybe", "--udp-flows=maybe: give true or false"},
		"verify-image": {"maybe", "--verify-image=maybe: give true or false"},
		"comm":         {strings.Repeat("c", 16), `--comm cccccccccccccccc: a process's name has at most 15 bytes; give its first 15: "ccccccccccccccc"`},
	} {
		t.Run(key, func(t *testing.T) {
			_, _, err := Options{Params: map[string]string{key: test.value}}.prepare(t.Context())
			if errors.Is(err, image.ErrMissing) {
				t.Skip(err)
			}
			if err == nil || err.Error() != test.want {
				t.Errorf("wanted %q\ngot    %v", test.want, err)
			}
		})
	}
}
