// SPDX-License-Identifier: Apache-2.0

package unit

import (
	"errors"
	"fmt"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// cpus are those that this thread may use.
func cpus() (all []int, err error) {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return nil, fmt.Errorf("asking for the thread's CPUs: %w", err)
	}
	for cpu := 0; len(all) < allowed.Count(); cpu++ {
		if allowed.IsSet(cpu) {
			all = append(all, cpu)
		}
	}
	return all, nil
}

// pin keeps the goroutine on a CPU, for good: its thread ends with it.
func pin(cpu int) error {
	runtime.LockOSThread()
	var one unix.CPUSet
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("pinning a thread to CPU %d: %w", cpu, err)
	}
	return nil
}

// stayOnOneCPU keeps a test where it is: each CPU has a ring of its own.
func stayOnOneCPU(tb testing.TB) {
	tb.Helper()
	all, err := cpus()
	if err == nil {
		err = pin(all[0])
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// onCPU runs do on a thread that stays on a CPU.
func onCPU(cpu int, do func() error) error {
	result := make(chan error)
	go func() {
		if err := pin(cpu); err != nil {
			result <- err
			return
		}
		result <- do()
	}()
	return <-result
}

// onOneCPU runs do on a thread that stays where it is: on any CPU.
func onOneCPU(do func() error) error {
	all, err := cpus()
	if err != nil {
		return err
	}
	return onCPU(all[0], do)
}

// twoCPUs are the one that stayOnOneCPU() takes, and another.
func twoCPUs(tb testing.TB) (first, second int) {
	tb.Helper()
	all, err := cpus()
	if err != nil {
		tb.Fatal(err)
	}
	if len(all) < 2 {
		tb.Skip("needs two CPUs")
	}
	return all[0], all[1]
}

// onTwoCPUs runs do on each of two CPUs at the same time.
func onTwoCPUs(tb testing.TB, do func() error) {
	tb.Helper()
	first, second := twoCPUs(tb)
	result := make(chan error)
	go func() { result <- onCPU(first, do) }()
	if err := errors.Join(onCPU(second, do), <-result); err != nil {
		tb.Fatal(err)
	}
}
