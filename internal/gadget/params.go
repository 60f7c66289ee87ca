// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf/rlimit"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/gadget-service/api"
	apihelpers "github.com/inspektor-gadget/inspektor-gadget/pkg/gadget-service/api-helpers"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/operators"
	clioperator "github.com/inspektor-gadget/inspektor-gadget/pkg/operators/cli"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/operators/common"
	ocihandler "github.com/inspektor-gadget/inspektor-gadget/pkg/operators/oci-handler"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/params"

	// What IG runs a gadget with: each registers itself.
	_ "github.com/inspektor-gadget/inspektor-gadget/pkg/environment/local"
	_ "github.com/inspektor-gadget/inspektor-gadget/pkg/operators/ebpf"
	_ "github.com/inspektor-gadget/inspektor-gadget/pkg/operators/filter"
	_ "github.com/inspektor-gadget/inspektor-gadget/pkg/operators/formatters"
	_ "github.com/inspektor-gadget/inspektor-gadget/pkg/operators/localmanager"
	_ "github.com/inspektor-gadget/inspektor-gadget/pkg/operators/socketenricher"
	_ "github.com/inspektor-gadget/inspektor-gadget/pkg/operators/uidgidresolver"
)

// outputParam is the parameter of IG's command line printer, which is part of
// a run only when it is asked for.
const outputParam = "output"

// containerFilters are the parameters that choose containers.
var containerFilters = []string{
	common.ParamContainerName, common.ParamNamespace, common.ParamPodName, common.ParamSelector,
	common.ParamK8sContainerName, common.ParamK8sNamespace, common.ParamK8sPodName, common.ParamK8sSelector,
	common.ParamRuntimeContainerName, common.ParamRuntimeContainerImageDigest, common.ParamRuntimeContainerImageID,
}

// ContainerFilter is the name of a parameter among values that chooses containers, or empty. IG heeds it in the kernel only
// without "host".
func ContainerFilter(values map[string]string) string {
	for _, name := range containerFilters {
		if values[name] != "" {
			return name
		}
	}
	return ""
}

// GlobalParams lists those parameters of Options.Params that are there for every
// image: how it is fetched and verified is among them.
func GlobalParams() params.Params {
	oci := ocihandler.New()
	var all params.Params
	for _, op := range append(dataOperators(true), oci) {
		all.Add(*globalParams(op)...)
	}
	all.Add(*apihelpers.ToParamDescs(oci.InstanceParams()).ToParams()...)
	return all
}

// synonyms are short names for parameters of the data source of events. IG has them
// by itself where an image has no other data source; this one has another, for the
// sockets that are older than the gadget.
var synonyms = map[string]struct{ of, alias string }{
	"filter":      {"filter.network", "F"},
	"filter-expr": {"filter-expr.network", "E"},
}

// Params lists what Options.Params can hold for an image: the parameters of
// IG's operators and those of the gadget. The image is read as the global ones
// among values say.
func Params(ctx context.Context, image Image, values map[string]string) (params.Params, error) {
	if err := image.checkVerifiable(values); err != nil {
		return nil, err
	}
	oci, err := newOCIHandler(maps.Clone(values))
	if err != nil {
		return nil, err
	}
	instance, err := instanceParams(ctx, image, append(dataOperators(true), oci), values)
	if err != nil {
		return nil, err
	}
	all := GlobalParams()
	for _, p := range instance {
		if all.Get(p.Key) == nil {
			all.Add(apihelpers.ParamToParamDesc(p).ToParam())
		}
	}
	for _, name := range slices.Sorted(maps.Keys(synonyms)) {
		s := synonyms[name]
		if p := all.Get(s.of); p != nil && all.Get(name) == nil {
			short := *p.ParamDesc
			short.Key, short.Alias = name, s.alias
			all.Add(short.ToParam())
		}
	}
	return all, nil
}

// prepare sets up the operators and sorts the parameters to them.
func (o Options) prepare(ctx context.Context) ([]operators.DataOperator, api.ParamValues, error) {
	given := maps.Clone(o.Params)
	for name, s := range synonyms {
		if value, ok := given[name]; ok {
			if _, both := given[s.of]; both {
				return nil, nil, fmt.Errorf("--%s and --%s are the same: give one of them", name, s.of)
			}
			given[s.of] = value
			delete(given, name)
		}
	}
	if err := o.Image.checkVerifiable(given); err != nil {
		return nil, nil, err
	}
	rest := maps.Clone(given) // what nobody took yet
	oci, err := newOCIHandler(rest)
	if err != nil {
		return nil, nil, err
	}
	_, printed := given[outputParam]
	others := dataOperators(printed)
	ops := append(slices.Clone(others), oci)
	instance, err := instanceParams(ctx, o.Image, ops, given)
	if err != nil {
		return nil, nil, err
	}

	values := api.ParamValues{}
	for _, p := range instance {
		value, ok := given[p.Key]
		if !ok {
			continue
		}
		if err := CheckValue(apihelpers.ParamToParamDesc(p), value); err != nil {
			return nil, nil, err
		}
		values[p.Prefix+p.Key] = value
		delete(rest, p.Key)
	}
	if err := initOperators(others, rest); err != nil {
		return nil, nil, err
	}
	if len(rest) > 0 {
		names := slices.Sorted(maps.Keys(rest))
		return nil, nil, fmt.Errorf("no such parameter: --%s; `netgadget run --help` lists those that there are", strings.Join(names, ", --"))
	}
	return ops, values, nil
}

// dataOperators are IG's, by name, but for the one that reads the image; with
// its command line printer or without.
func dataOperators(printed bool) []operators.DataOperator {
	registered := operators.GetDataOperators()
	ops := make([]operators.DataOperator, 0, len(registered)+2)
	for _, name := range slices.Sorted(maps.Keys(registered)) {
		ops = append(ops, registered[name])
	}
	if printed {
		ops = append(ops, clioperator.CLIOperator)
	}
	return ops
}

// newOCIHandler makes what reads the image, and takes its parameters out of
// values. Each run has one of its own: the first use initializes it, with
// defaults unless somebody did before.
func newOCIHandler(values map[string]string) (operators.DataOperator, error) {
	oci := ocihandler.New()
	keys, given := values["public-keys"]
	err := initOperator(oci, values)
	if err != nil && given && !strings.Contains(keys, "-----BEGIN ") {
		return nil, fmt.Errorf(`--public-keys %s: give the key itself, not the name of its file: --public-keys="$(cat cosign.pub)"`, keys)
	}
	return oci, err
}

func globalParams(op operators.DataOperator) *params.Params {
	return apihelpers.ToParamDescs(op.GlobalParams()).ToParams()
}

// instanceParams asks IG which parameters a run of the image takes. It reads the
// image for that, as values say.
func instanceParams(ctx context.Context, image Image, ops []operators.DataOperator, values map[string]string) (api.Params, error) {
	// IG makes maps here, and allows itself the memory only later: before Linux 5.11 what
	// another gadget holds counts as well.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("reading the gadget image: %w", err)
	}
	gadgetCtx, err := image.context(ctx, slices.Clone(ops))
	if err != nil {
		return nil, err
	}
	reading := api.ParamValues{}
	for _, p := range ocihandler.OciHandler.InstanceParams() {
		if value, ok := values[p.Key]; ok {
			// see instantiateOperators in IG's pkg/gadget-context/run.go
			reading["operator."+ocihandler.OciHandler.Name()+"."+p.Key] = value
		}
	}
	if err := gadgetCtx.PrepareGadgetInfo(reading); err != nil {
		return nil, fmt.Errorf("reading the gadget image: %w", image.explain(err))
	}
	return gadgetCtx.Params(), nil
}

// initialized holds the operators that were: theirs is the state of the process.
var initialized = struct {
	sync.Mutex
	ops map[string]bool
}{ops: map[string]bool{}}

// initOperators initializes operators, those that were not, with their global
// parameters, and takes these out of values.
func initOperators(ops []operators.DataOperator, values map[string]string) error {
	initialized.Lock()
	defer initialized.Unlock()
	for _, op := range ops {
		if !initialized.ops[op.Name()] {
			if err := initOperator(op, values); err != nil {
				return err
			}
			initialized.ops[op.Name()] = true
			continue
		}
		for _, p := range *globalParams(op) {
			if _, ok := values[p.Key]; ok {
				return fmt.Errorf("--%s can be given to the first run of a process only", p.Key)
			}
		}
	}
	return nil
}

func initOperator(op operators.DataOperator, values map[string]string) error {
	global := globalParams(op)
	for _, p := range *global {
		value, ok := values[p.Key]
		if !ok {
			continue
		}
		if err := CheckValue(p.ParamDesc, value); err != nil {
			return err
		}
		if err := p.Set(value); err != nil {
			return fmt.Errorf("setting --%s: %w", p.Key, err)
		}
		delete(values, p.Key)
	}
	if err := op.Init(global); err != nil {
		return fmt.Errorf("initializing %s: %w", op.Name(), err)
	}
	return nil
}
