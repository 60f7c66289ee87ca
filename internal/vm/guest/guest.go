// SPDX-License-Identifier: Apache-2.0

// Package guest is what the host and PID 1 of a guest say to each other: the configuration that travels in the
// initramfs, and the frames on the virtio-serial port.
//
// One port carries everything the guest says, so that what it says stays in order: when the host has read the exit frame
// it has read all output before it. The guest powers off only after the host's Ack, so nothing is lost in a queue.
package guest

import (
	"encoding/binary"
	"fmt"
	"io"
)

const (
	// ConfigPath is where the initramfs holds the Config, as JSON.
	ConfigPath = "/.vm/config.json"
	// InitPath is where the kernel finds PID 1.
	InitPath = "/init"
	// PortName names the virtio-serial port in /sys/class/virtio-ports/*/name.
	PortName = "gadget.vm"
	// Ack is the one byte that the host sends back after the exit frame.
	Ack = 'A'
	// MaxPayload is the most bytes that one frame carries: what the guest's driver takes in one write.
	MaxPayload = 32<<10 - headerLen

	headerLen = 5
)

// Config tells PID 1 what to do.
type Config struct {
	PortModules []Module // what the port needs, in load order
	Modules     []Module // what the command needs, in load order
	Command     []string
	Env         []string // KEY=value, added to PID 1's own
	Dir         string
	Root        string   // see vm.Config
	System      []string // likewise
}

// Module is a kernel module in the initramfs, uncompressed.
type Module struct {
	Path string
	// Optional marks one that may refuse to load (a soft dependency, such as a driver for another CPU).
	Optional bool
}

// Exit is the payload of the exit frame.
type Exit struct {
	Status   int    // the command's exit status; 128 + the signal that killed it
	Error    string // why the command could not be run; empty if it was
	OOMKills uint64 // processes that the kernel killed for want of memory
}

// Kind tells frames apart.
type Kind byte

// The frames that a guest sends: Started once, Stdout and Stderr in any number, Exited once and last.
const (
	Started Kind = 's' // no payload: the command is about to start
	Stdout  Kind = 'o' // bytes that the command wrote
	Stderr  Kind = 'e' // bytes that the command wrote
	Exited  Kind = 'x' // an Exit, as JSON
)

// WriteFrame writes one frame in one Write: the kind, the payload's length (4 bytes, big endian), the payload.
// The payload is at most MaxPayload bytes.
func WriteFrame(w io.Writer, k Kind, payload []byte) error {
	if len(payload) > MaxPayload {
		return fmt.Errorf("frame of %d bytes: at most %d fit", len(payload), MaxPayload)
	}
	b := make([]byte, 0, headerLen+len(payload))
	b = append(b, byte(k))
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	_, err := w.Write(append(b, payload...))
	return err
}

// ReadFrame reads one frame; its payload may use buf. The error is io.EOF only between frames.
func ReadFrame(r io.Reader, buf []byte) (Kind, []byte, error) {
	var h [headerLen]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n > MaxPayload {
		return 0, nil, fmt.Errorf("frame of %d bytes: at most %d fit", n, MaxPayload)
	}
	if int(n) > cap(buf) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		return 0, nil, io.ErrUnexpectedEOF
	}
	return Kind(h[0]), buf, nil
}
