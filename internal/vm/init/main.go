// SPDX-License-Identifier: Apache-2.0

// Command init is PID 1 of a guest: it makes the kernel usable, runs one command, and tells the host how it ended.
// Until the port to the host is open, an error ends PID 1 and with it the guest (the kernel panics): the console has the
// reason.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"gadget.example/network/internal/vm/guest"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("init: ")
	if len(os.Args) == 1 && os.Args[0] == deputy {
		finish(os.NewFile(deputyPort, "port"))
	}
	if os.Getpid() != 1 {
		log.Fatal("this is PID 1 of a guest of internal/vm; it does nothing elsewhere")
	}
	if err := mountBasics(); err != nil {
		log.Fatal(err)
	}
	config, err := readConfig()
	if err != nil {
		log.Fatal(err)
	}
	port, err := openPort(config.PortModules)
	if err != nil {
		log.Fatal(err)
	}
	if len(config.System) > 0 {
		log.Fatal(handOver(config, port))
	}
	finish(port)
}

// finish does all that is left to do, and powers off.
func finish(port *os.File) {
	config, err := readConfig()
	if err != nil {
		log.Fatal(err)
	}
	if err := report(port, serve(config, &frames{w: port})); err != nil {
		log.Fatal(err)
	}
	unix.Sync()
	log.Fatal("power off: ", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

func readConfig() (guest.Config, error) {
	var c guest.Config
	b, err := os.ReadFile(guest.ConfigPath)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("%s: %w", guest.ConfigPath, err)
	}
	return c, nil
}

// serve prepares the machine, runs the command and says how it ended.
func serve(c guest.Config, out *frames) guest.Exit {
	for _, step := range []func() error{
		mountRest,
		linkDescriptors,
		loopbackUp,
		func() error { return loadModules(c.Modules) },
		func() error { return out.send(guest.Started, nil) },
	} {
		if err := step(); err != nil {
			return guest.Exit{Error: err.Error()}
		}
	}
	status, err := run(c, out)
	exit := guest.Exit{Status: status}
	if err == nil {
		exit.OOMKills, err = oomKills()
	}
	if err != nil {
		exit.Error = err.Error()
	}
	return exit
}

// report sends the last frame and waits until the host has it.
func report(port io.ReadWriter, exit guest.Exit) error {
	b, err := json.Marshal(exit)
	if err != nil {
		return err
	}
	if err := guest.WriteFrame(port, guest.Exited, b); err != nil {
		return fmt.Errorf("report the exit status: %w", err)
	}
	if _, err := io.ReadFull(port, make([]byte, 1)); err != nil {
		return fmt.Errorf("wait for the host to have the exit status: %w", err)
	}
	return nil
}

// frames lets several writers share the port.
type frames struct {
	mu sync.Mutex
	w  io.Writer
}

func (f *frames) send(k guest.Kind, payload []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return guest.WriteFrame(f.w, k, payload)
}

// copy sends what r gives, as it comes, until its end.
func (f *frames) copy(k guest.Kind, r io.Reader) error {
	buf := make([]byte, guest.MaxPayload)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if err := f.send(k, buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
