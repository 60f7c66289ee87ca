// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/inspektor-gadget/inspektor-gadget/pkg/logger"
)

// IG v0.51.1 tells of events that it could not read in its log only
// (Tracer.receiveEvents in pkg/operators/ebpf/tracer.go; the data source's
// ReportLostData is empty): these are the messages' formats.
const (
	lostFormat    = "reading event: lost %d samples"
	readFormat    = "error reading event: %v"
	iterFormat    = "error running iterator %q: %v"
	processFormat = "error processing event: %v"
)

// IG's library takes itself for v0.0.0 where it is not linked into its own
// programs, and so warns of every image (checkBuilderVersion in
// pkg/operators/oci-handler/oci.go).
const builderFormat = "This gadget was built with ig %s and it's being run with v%s. Gadget could be incompatible"

// modeFormat is how IG's command line says that it does not print a data source: of
// the one that has nothing to print this is no news.
const modeFormat = "output mode %q for data source %q is not supported; skipping data source"

// log is IG's logger for one run. It counts lost events and keeps the errors,
// so that the run can end with them.
type log struct {
	logger.Logger
	sink *sink
}

func newLog(o Options) *log {
	s := &sink{level: logger.WarnLevel, onMessage: o.OnMessage, failedIterator: make(chan struct{})}
	if o.Verbose {
		s.level = logger.DebugLevel
	}
	return &log{Logger: logger.NewFromGenericLogger(s), sink: s}
}

// err is what IG logged as an error.
func (l *log) err() error {
	l.sink.mu.Lock()
	defer l.sink.mu.Unlock()
	return errors.Join(l.sink.errs...)
}

// failedIterator is closed when the gadget could not read what was there before it.
func (l *log) failedIterator() <-chan struct{} { return l.sink.failedIterator }

// lost is how many records the kernel could not put into the rings.
func (l *log) lost() uint64 {
	l.sink.mu.Lock()
	defer l.sink.mu.Unlock()
	return l.sink.lost
}

type sink struct {
	level     logger.Level
	onMessage func(string) // or nil

	failedIterator chan struct{} // closed when one has

	mu   sync.Mutex
	lost uint64
	errs []error
}

func (s *sink) SetLevel(level logger.Level) { s.level = level }
func (s *sink) GetLevel() logger.Level      { return s.level }

func (s *sink) Log(severity logger.Level, params ...any) {
	s.write(severity, fmt.Sprint(params...))
}

func (s *sink) Logf(severity logger.Level, format string, params ...any) {
	switch format {
	case lostFormat:
		if n, ok := params[0].(uint64); ok {
			s.mu.Lock()
			s.lost += n
			s.mu.Unlock()
			return
		}
		severity = logger.ErrorLevel
	case readFormat, processFormat:
		severity = logger.ErrorLevel
	case iterFormat: // it runs once
		s.write(logger.ErrorLevel, fmt.Sprintf(format, params...))
		close(s.failedIterator)
		return
	case modeFormat:
		if params[1] == olderSockets {
			return
		}
	case builderFormat:
		library := libraryVersion()
		if library == params[0] || library == unknownVersion {
			return
		}
		params = []any{params[0], strings.TrimPrefix(library, "v")}
	}
	s.write(severity, fmt.Sprintf(format, params...))
}

// write keeps errors for the end of the run and prints the rest.
func (s *sink) write(severity logger.Level, message string) {
	if s.onMessage != nil {
		s.onMessage(message)
	}
	if severity <= logger.ErrorLevel {
		s.mu.Lock()
		s.errs = append(s.errs, errors.New(message))
		s.mu.Unlock()
		return
	}
	if severity <= s.level {
		fmt.Fprintf(os.Stderr, "%s: %s\n", severity, message)
	}
}
