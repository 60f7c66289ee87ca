// SPDX-License-Identifier: Apache-2.0

// Package gadget runs the gadget image "network" through Inspektor Gadget's Go
// API and gives its events as they come.
//
// Inspektor Gadget (IG) keeps the state of its operators for the whole
// process: run one gadget at a time.
package gadget

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/inspektor-gadget/inspektor-gadget/pkg/datasource"
	gadgetcontext "github.com/inspektor-gadget/inspektor-gadget/pkg/gadget-context"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/operators"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/operators/simple"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/runtime/local"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/utils/host"
)

// drainTimeout bounds the wait for the last events: a reader that does not
// catch up with a full ring in this time has stopped.
const drainTimeout = 30 * time.Second

// Options says what to run and what to do with its events.
type Options struct {
	// Image is what to run; the zero value is the embedded image.
	Image Image

	// Params are flags of the gadget and of IG's operators by name, without
	// dashes: {"host": "true", "port": "53", "output": "columns"}. Params()
	// lists them.
	Params map[string]string

	// Verbose passes IG's own messages below a warning on to standard error.
	Verbose bool

	// OnMessage, if not nil, gets each of IG's own messages as it comes, from any
	// goroutine: they tell how far a start is.
	OnMessage func(string)

	// AutoMount makes IG mount bpffs, debugfs and tracefs where they are not, for
	// good. Without, the lack of the latter two is an error. The first run of a
	// process decides.
	AutoMount bool

	// NetNS are the network namespaces to watch in place of those that IG watches: a
	// file such as /run/netns/NAME or /proc/PID/ns/net, a name of `ip netns`, or
	// AllNetNS, which is every one, those that are made later included.
	NetNS []string

	// NetNSOf are processes whose network namespaces are watched too. IG by
	// itself watches that of process 1 (with "host") and those of containers.
	NetNSOf []int

	// DropReasons has the kernel asked why it drops packets (Linux 5.17 and later),
	// for Event.Drop. It costs a little for each connection.
	DropReasons bool

	// OnEvent, if not nil, gets each event, one at a time and per CPU in the
	// order in which it was reported.
	OnEvent func(Event)

	// Hints, if not nil, gets a line about each kind of failure, once: what to look
	// at first. It comes behind the event's own line.
	Hints io.Writer

	// OnReady, if not nil, is called when the gadget sees every packet. When
	// it returns, the gadget reports what was sent until then, and ends.
	OnReady func(context.Context) error

	// command, if not nil, is what is followed.
	command *command

	columns []column // of the table, if it is not the image's own
}

// Check says what is wrong with the options as far as that can be known without running the gadget.
func (o Options) Check() error {
	if err := o.conflicts(); err != nil {
		return err
	}
	_, err := o.netNSFiles()
	return err
}

// Run runs the gadget until ctx is done or OnReady returned, reports what was
// seen until then, and returns. Everything it attached is detached then. That
// events were lost is no error: the summary tells, and its Err.
func Run(ctx context.Context, o Options) (s Summary, err error) {
	if err := o.conflicts(); err != nil {
		return s, err
	}
	o = o.withTable()
	files, err := o.netNSFiles()
	if err != nil {
		return s, err
	}
	if err := host.Init(host.Config{AutoMountFilesystems: o.AutoMount}); err != nil {
		return s, err
	}
	runtime := local.New()
	if err := runtime.Init(nil); err != nil {
		return s, err
	}
	ops, values, err := o.prepare(ctx)
	if err != nil {
		return s, err
	}

	r := &run{older: make(chan struct{}), options: o, files: files, log: newLog(o), drain: newDrain(), account: newAccount(), ready: make(chan struct{})}
	defer func() { err = errors.Join(err, r.close()) }()
	if o.followed() != "" {
		r.talked = newTalked()
	}
	// IG must outlive ctx by the time that it takes to drain.
	igCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	gadgetCtx, err := o.Image.context(igCtx, append(ops, r.operators()...), gadgetcontext.WithLogger(r.log))
	if err != nil {
		return s, err
	}

	ended := make(chan error, 1)
	go func() { ended <- runtime.RunGadget(gadgetCtx, nil, values) }()
	select {
	case err := <-ended:
		return s, fmt.Errorf("starting the gadget: %w", o.Image.explain(err))
	case <-r.ready:
	}
	select {
	case err := <-ended:
		return s, fmt.Errorf("starting the gadget: %w", err)
	case <-r.log.failedIterator():
		stop()
		return s, errors.Join(<-ended, r.log.err())
	case <-r.older:
	}

	s, err = r.follow(ctx, ended)
	stop()
	return s, errors.Join(err, <-ended, r.log.err())
}

// run is one run of the gadget: operators among IG's.
type run struct {
	options  Options
	log      *log
	ready    chan struct{}
	older    chan struct{} // the gadget knows the sockets that are older
	drain    *drain
	account  *account
	files    []string // of namespaces, where it is not IG that watches them
	taps     *namespaces
	talked   *talked // by those who are followed
	followed *followed
	hints    hints
	failed   error // in preStart
}

// follow waits for the end of what is watched, then for the last event.
func (r *run) follow(ctx context.Context, ended chan error) (Summary, error) {
	watched := make(chan error, 1)
	if r.options.OnReady != nil {
		go func() { watched <- r.options.OnReady(ctx) }()
	}

	var err error
	select {
	case err = <-watched:
	case endErr := <-ended:
		ended <- nil
		return Summary{}, fmt.Errorf("the gadget ended by itself: %w", endErr)
	case <-ctx.Done():
		if r.options.OnReady != nil {
			err = <-watched
		}
	}

	drainCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	s, endErr := r.end(drainCtx)
	return s, errors.Join(err, endErr)
}

// mostDrains is how often the rings are drained until no event was sent since. On
// a busy host there is no such moment: then what is on its way is of no part of
// the run.
const mostDrains = 3

// waitingTimeout bounds the wait for events that wait in the kernel. They do so
// for half a second, or until the reader has caught up.
const waitingTimeout = 10 * time.Second

// awaitedTimeout bounds the wait for connections whose SYN no device has seen:
// they are reported when it is sent again, after a second.
const awaitedTimeout = 2 * time.Second

// closingTimeout bounds the wait for connections of a command that has ended: they
// close then, unless somebody else has them too, or the other side is slow.
const closingTimeout = 2 * time.Second

// end waits for the last event, and settles the account.
func (r *run) end(ctx context.Context) (s Summary, err error) {
	// Then every packet has become an event, and some of these wait.
	if err = r.drain.wait(ctx); err == nil {
		err = r.account.endArrivals()
	}
	if err == nil {
		err = waitFor(ctx, r.account.arriving, waitingTimeout)
	}
	if err == nil {
		err = waitFor(ctx, r.account.awaited, awaitedTimeout)
	}
	if err == nil && r.options.command != nil {
		err = waitFor(ctx, r.account.living, closingTimeout)
	}
	if err == nil {
		err = waitFor(ctx, r.account.queued, waitingTimeout)
	}
	settled := false
	for i := 1; err == nil && !settled; i++ {
		if err = r.drain.wait(ctx); err == nil {
			s, settled, err = r.account.close(i == mostDrains)
		}
	}
	// What is lost is told with the next record that finds room: a sentinel.
	s.ReaderLost = r.log.lost() - r.drain.refused.Load()
	s.LeftOutBy = r.options.processFilters()
	var lateErr error
	s.Late, lateErr = r.taps.late()
	return s, errors.Join(err, lateErr, r.tellFollowed(&s))
}

// tellFollowed adds what is known of those who are followed.
func (r *run) tellFollowed(s *Summary) (err error) {
	if r.followed == nil {
		return nil
	}
	if s.Unfollowed, err = r.followed.unfollowed(); err != nil {
		return err
	}
	s.TalkedTo, err = r.talked.names()
	return err
}

// waitFor waits until what waits now in the gadget does so no more, or the time is
// over. Meanwhile the gadget sends what it can.
func waitFor(ctx context.Context, waiting queuedMap, bound time.Duration) error {
	now, err := waiting.read()
	if err != nil || now.taken >= now.put {
		return err
	}
	clock, err := newClock()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	err = clock.until(ctx, func() (bool, error) {
		q, err := waiting.read()
		return q.taken >= now.put, err
	})
	return errors.Join(err, clock.close())
}

// processFilters are the parameters that ask for some processes alone, as flags.
func (o Options) processFilters() (names []string) {
	for _, name := range []string{"comm", "pid", "tid", "uid", "gid"} {
		if _, ok := o.Params[name]; ok {
			names = append(names, "--"+name)
		}
	}
	if o.followed() != "" && o.command == nil {
		names = append(names, "--"+followParam)
	}
	if names == nil && o.command == nil {
		names = []string{"the filters by container"}
	}
	return names
}

// Priorities in IG's order: of events, before everything that reads them, and
// behind everything that writes to them but before the command line's printer;
// of operators, behind the one that reads the image (-1000), and before the
// formatters (0), which hide the fields that they format.
const (
	priorityFirst  = -1_000_000
	priorityFields = -500
	priorityLast   = 9_000
	priorityHints  = 20_000 // behind the printer
)

func (r *run) operators() []operators.DataOperator {
	return []operators.DataOperator{
		simple.New("network-fields",
			simple.WithPriority(priorityFields),
			simple.OnInit(r.init),
			simple.OnPreStart(r.replaceAttacher),
		),
		simple.New("network",
			simple.WithPriority(priorityLast),
			simple.OnInit(r.initFormatted),
			simple.OnPreStart(r.preStart),
			simple.OnStart(r.start),
		),
	}
}

// olderSockets is the data source without rows by which the gadget looks at the
// sockets that are older than it.
const olderSockets = "older_sockets"

func (r *run) init(gadgetCtx operators.GadgetContext) error {
	ds, ok := gadgetCtx.GetDataSources()["network"]
	if !ok {
		return errors.New("the image has no data source \"network\": it is another gadget, or an older one")
	}
	d, err := newDecoder(ds)
	if err != nil {
		return err
	}
	if err := r.options.prepareHooks(gadgetCtx); err != nil {
		return err
	}
	r.options.setTable(ds)
	older, ok := gadgetCtx.GetDataSources()[olderSockets]
	if !ok {
		return fmt.Errorf("the image has no data source %q: it is an older one", olderSockets)
	}
	// IG reads it once: that there is nothing in it tells that it has.
	err = older.SubscribeArray(func(datasource.DataSource, datasource.DataArray) error {
		close(r.older)
		return nil
	}, priorityFirst)
	if err != nil {
		return err
	}
	err = ds.Subscribe(func(_ datasource.DataSource, data datasource.Data) error {
		if cpu, ok := d.sentinel(data); ok {
			r.drain.arrived(cpu)
			return datasource.ErrDiscard
		}
		if r.talked != nil && d.egress.Get(data)[0] != 0 {
			if service, ok := d.called(data); ok {
				r.talked.enter(service)
			}
		}
		kind := d.kindOf(data)
		if r.options.asks(failedOnlyParam) {
			kind = Attempt // each tells of one that no other event tells of
		}
		if !r.account.enter(kind, d.uint32(d.suppressed, data), func() Owner { return d.owner(data) }) {
			return datasource.ErrDiscard
		}
		return nil
	}, priorityFirst)
	if err == nil && r.options.Hints != nil {
		err = ds.Subscribe(func(_ datasource.DataSource, data datasource.Data) error {
			if event, err := d.event(data); err == nil {
				r.hints.tell(r.options.Hints, event)
			}
			return nil
		}, priorityHints)
	}
	if err != nil || r.options.OnEvent == nil {
		return err
	}
	return ds.Subscribe(func(_ datasource.DataSource, data datasource.Data) error {
		event, err := d.event(data)
		if err != nil {
			r.log.Errorf("decoding an event: %v", err)
			return nil
		}
		r.options.OnEvent(event)
		return nil
	}, priorityLast)
}

// initFormatted runs when IG has made the fields that it formats.
func (r *run) initFormatted(gadgetCtx operators.GadgetContext) error {
	ds := gadgetCtx.GetDataSources()["network"]
	return errors.Join(r.options.shortenLatency(ds), emptyDrop(ds))
}

// replaceAttacher runs before IG attaches the gadget to the namespaces of the host
// and of containers.
func (r *run) replaceAttacher(gadgetCtx operators.GadgetContext) error {
	if r.files != nil {
		gadgetCtx.SetVar(attacherVar, noAttacher{})
	}
	return nil
}

// preStart runs when IG's operators have attached containers, and before the
// eBPF programs are loaded. IG v0.51.1 stops no operator when one fails here, but
// does when one fails to start (Run in pkg/gadget-context/run.go).
func (r *run) preStart(gadgetCtx operators.GadgetContext) error {
	if r.files != nil {
		return nil
	}
	r.failed = watchNetNSOf(gadgetCtx, r.options.NetNSOf)
	return nil
}

// start runs last: every program is attached.
func (r *run) start(gadgetCtx operators.GadgetContext) error {
	if r.failed != nil {
		return r.failed
	}
	if err := errors.Join(r.drain.attach(gadgetCtx), r.account.attach(gadgetCtx)); err != nil {
		return err
	}
	if err := r.startFollowing(gadgetCtx); err != nil {
		return err
	}
	close(r.ready)
	return nil
}

// startFollowing prepares what IG does not do.
func (r *run) startFollowing(gadgetCtx operators.GadgetContext) (err error) {
	if r.files == nil {
		return nil
	}
	whose := thoseOfFollowed
	if slices.Contains(r.options.NetNS, AllNetNS) {
		whose = everybodys
	}
	if r.options.followed() != "" {
		if r.followed, err = newFollowed(gadgetCtx); err != nil {
			return err
		}
		if err = r.talked.attach(gadgetCtx); err != nil {
			return err
		}
	}
	if r.options.command != nil {
		r.options.command.followed = r.followed
	}
	r.taps, err = newNamespaces(gadgetCtx, r.files, whose)
	return err
}

func (r *run) close() error {
	return errors.Join(r.taps.close(), r.drain.close())
}

// conflicts names two parameters that leave nothing to report.
func (o Options) conflicts() error {
	for _, pair := range [][2]string{{"egress-only", "ingress-only"}, {"tcp-only", "udp-only"}, {failedOnlyParam, "udp-only"}} {
		if o.asks(pair[0]) && o.asks(pair[1]) {
			return fmt.Errorf("--%s and --%s exclude each other: nothing would be reported; give one of them", pair[0], pair[1])
		}
	}
	if o.DropReasons && !o.asksForOutcomes() {
		return fmt.Errorf("--drop-reasons tells why attempts have failed: give --%s or --%s as well", lifecycleParam, failedOnlyParam)
	}
	return nil
}

// asks is whether a parameter that is true or false is true.
func (o Options) asks(param string) bool { return strings.EqualFold(o.Params[param], "true") }

// Parameters by which the gadget tells how attempts went on.
const (
	lifecycleParam  = "lifecycle"
	failedOnlyParam = "failed-only"
)

func (o Options) asksForOutcomes() bool { return o.asks(lifecycleParam) || o.asks(failedOnlyParam) }
