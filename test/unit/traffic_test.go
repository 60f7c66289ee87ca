// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"testing"
)

// check sends a frame and compares what both ends report with the reference,
// which knows nothing of the frames before.
func (w *wire) check(r *reference, frame []byte) error {
	w.watcher.forgetFlows(w.tb)
	got, err := w.exchange(frame)
	if err != nil {
		return err
	}
	var want reports
	for _, egress := range []bool{true, false} {
		if e, ok := w.want(r, frame, egress, w.netns(egress)); ok {
			want.add(e)
		}
	}
	return errors.Join(difference(frame, got.egress, want.egress), difference(frame, got.ingress, want.ingress))
}

func TestTrafficIsReportedByBothEndsOnlyWhenItIsAnAttempt(t *testing.T) {
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) {
			var r reference
			w := k.open(t)
			for _, c := range cases() {
				frame, ok := w.adapt(c.frame())
				if !ok {
					continue // no frame for such a wire
				}
				t.Run(c.name, func(t *testing.T) {
					if err := w.check(&r, frame); err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
}

func TestCutTrafficIsIgnoredAtEveryLength(t *testing.T) {
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) {
			var r reference
			w := k.open(t)
			for name, p := range wholePackets() {
				whole := p.frame()
				for n := range len(whole) + 1 {
					frame, ok := w.adapt(whole[:n])
					if !ok {
						continue
					}
					if err := w.check(&r, frame); err != nil {
						t.Errorf("%s, cut to %d of %d bytes: %v", name, n, len(whole), err)
					}
				}
			}
		})
	}
}
