// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestOnlyTestsThatRanAndPassedAreASuccess(t *testing.T) {
	const (
		pass = `{"Action":"pass","Package":"p","Test":"TestA"}`
		end  = `{"Action":"pass","Package":"p","Elapsed":1.26}`
		lost = `{"Action":"fail","Package":"p","Elapsed":1}`
	)
	tests := map[string]struct {
		events []string
		ok     bool
		want   []string
	}{
		"all passed": {[]string{pass, end}, true, []string{"ok    p  1 tests in 1.3s", "1 passed, 0 failed, 0 skipped"}},
		"a long one": {
			[]string{`{"Action":"pass","Package":"p","Test":"TestA/part","Elapsed":75}`, `{"Action":"pass","Package":"p","Test":"TestA","Elapsed":75.6}`, end},
			true,
			[]string{"      TestA in 76s\nok    p  2 tests in 1.3s\n"},
		},
		"one failed": {
			[]string{pass, `{"Action":"output","Package":"p","Test":"TestB","Output":"why\n"}`, `{"Action":"fail","Package":"p","Test":"TestB"}`, lost},
			false,
			[]string{"FAIL  p TestB\nwhy\n", "FAIL  p\n", "1 passed, 1 failed, 0 skipped"},
		},
		"one skipped": {
			[]string{pass, `{"Action":"output","Package":"p","Test":"TestB","Output":"no root\n"}`, `{"Action":"skip","Package":"p","Test":"TestB"}`, end},
			false,
			[]string{"SKIP  p TestB\nno root\n", "1 passed, 0 failed, 1 skipped"},
		},
		"a package that ran none": {
			[]string{pass, end, `{"Action":"output","Package":"q","Output":"skipped: no root\n"}`, `{"Action":"pass","Package":"q"}`},
			false,
			[]string{"FAIL  q: no test was run\nskipped: no root\n", "1 passed, 1 failed, 0 skipped"},
		},
		"a package without tests": {
			[]string{pass, end, `{"Action":"output","Package":"q","Output":"?   \tq\t[no test files]\n"}`, `{"Action":"skip","Package":"q"}`},
			true,
			[]string{"1 passed, 0 failed, 0 skipped"},
		},
		"a package that does not build": {
			[]string{
				pass, end,
				`{"ImportPath":"q [q.test]","Action":"build-output","Output":"q.go:1: wrong\n"}`,
				`{"ImportPath":"q [q.test]","Action":"build-fail"}`,
				`{"Action":"fail","Package":"q","FailedBuild":"q [q.test]"}`,
			},
			false,
			[]string{"FAIL  q: no test was run\nq.go:1: wrong\n"},
		},
		"a test that the end of its package cut off": {
			[]string{pass, `{"Action":"output","Package":"p","Test":"TestB","Output":"panic\n"}`, lost},
			false,
			[]string{"FAIL  p TestB: did not end\npanic\n", "1 passed, 1 failed"},
		},
		"a package that fails after its tests": {[]string{pass, lost}, false, []string{"FAIL  p\n", "1 passed, 1 failed"}},
		"nothing":                              {nil, false, []string{"0 passed, 0 failed"}},
		"other lines":                          {[]string{"go: wrong", pass, end}, true, []string{"go: wrong\n"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			ok, err := report(strings.NewReader(strings.Join(test.events, "\n")), &out)
			if ok != test.ok || err != nil {
				t.Errorf("wanted %v, got %v, %v", test.ok, ok, err)
			}
			for _, want := range test.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("wanted %q in\n%s", want, &out)
				}
			}
		})
	}
}
