// SPDX-License-Identifier: Apache-2.0

// Command agent makes real attempts to talk and reports them. It reads requests
// of package attempt from its standard input, and ends with it.
//
// It uses plain system calls: which socket, thread and order of calls an attempt
// is made of is what the tests are about, and Go's net package decides that on
// its own.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"gadget.example/network/test/e2e/attempt"
)

func init() {
	// Requests are carried out by the process's first thread.
	runtime.LockOSThread()
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == daemonCommand {
		if err := beDaemon(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "agent: daemon:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 {
		os.Exit(takeWays(os.Args[1:]))
	}
	requests, reports := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var request attempt.Request
		err := requests.Decode(&request)
		if errors.Is(err, io.EOF) {
			return
		}
		if err == nil {
			err = reports.Encode(carryOut(request))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "agent:", err)
			os.Exit(1)
		}
	}
}

func carryOut(request attempt.Request) attempt.Report {
	if !request.Thread {
		return try(request)
	}
	report := make(chan attempt.Report)
	go func() {
		runtime.LockOSThread()
		report <- try(request)
		// The thread stays for as long as the process: what it opened is its.
		select {}
	}()
	return <-report
}

func try(request attempt.Request) attempt.Report {
	report := attempt.Report{Dst: request.Dst}
	err := errors.Join(identify(&report.Process), act(request, &report))
	if err != nil {
		report.Failed = err.Error()
	}
	return report
}

func act(request attempt.Request, report *attempt.Report) error {
	switch {
	case len(request.Steps) > 0:
		return kept.carryOut(request, report)
	case request.Serve:
		return serve(request)
	case request.Protocol == attempt.ICMP:
		return ping(request, report)
	case request.Protocol == attempt.UDP:
		return send(request, report)
	default:
		return connect(request, report)
	}
}
