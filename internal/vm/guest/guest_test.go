// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestFramesComeBackAsSent(t *testing.T) {
	var port bytes.Buffer
	sent := []struct {
		kind    Kind
		payload []byte
	}{
		{Started, nil},
		{Stdout, []byte("text")},
		{Stderr, bytes.Repeat([]byte{0xff}, MaxPayload)},
		{Exited, []byte("{}")},
	}
	for _, f := range sent {
		if err := WriteFrame(&port, f.kind, f.payload); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range sent {
		kind, payload, err := ReadFrame(&port, make([]byte, 10))
		if err != nil || kind != want.kind || !bytes.Equal(payload, want.payload) {
			t.Errorf("got %q, %d bytes, %v; want %q, %d bytes", kind, len(payload), err, want.kind, len(want.payload))
		}
	}
	if _, _, err := ReadFrame(&port, nil); !errors.Is(err, io.EOF) {
		t.Errorf("after the last: got %v, want %v", err, io.EOF)
	}
}

func TestFrameThatIsNoneIsRefused(t *testing.T) {
	for name, b := range map[string][]byte{
		"header cut":  {'o', 0, 0},
		"payload cut": {'o', 0, 0, 0, 2, 'x'},
		"too long":    {'o', 0xff, 0, 0, 0},
	} {
		if _, _, err := ReadFrame(bytes.NewReader(b), nil); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: got error %v, want one that is not the end", name, err)
		}
	}
	if err := WriteFrame(io.Discard, Stdout, make([]byte, MaxPayload+1)); err == nil {
		t.Error("a frame that is too long was written")
	}
}
