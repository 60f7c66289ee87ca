// SPDX-License-Identifier: Apache-2.0

package gadget

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/inspektor-gadget/inspektor-gadget/pkg/gadget-service/api"
	apihelpers "github.com/inspektor-gadget/inspektor-gadget/pkg/gadget-service/api-helpers"
	"github.com/inspektor-gadget/inspektor-gadget/pkg/operators"
	clioperator "github.com/inspektor-gadget/inspektor-gadget/pkg/operators/cli"
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

// Params lists what Options.Params can hold for an image: the parameters of
// IG's operators and those of the gadget.
func Params(ctx context.Context, image Image) (params.Params, error) {
	ops := dataOperators(true)
	var all params.Params
	for _, op := range ops {
		all.Add(*globalParams(op)...)
	}
	instance, err := instanceParams(ctx, image, ops)
	if err != nil {
		return nil, err
	}
	for _, p := range instance {
		all.Add(apihelpers.ParamToParamDesc(p).ToParam())
	}
	return all, nil
}

// prepare sets up the operators and sorts the parameters to them.
func (o Options) prepare(ctx context.Context) ([]operators.DataOperator, api.ParamValues, error) {
	_, print := o.Params[outputParam]
	ops := dataOperators(print)
	instance, err := instanceParams(ctx, o.Image, ops)
	if err != nil {
		return nil, nil, err
	}

	values := api.ParamValues{}
	rest := maps.Clone(o.Params)
	for _, p := range instance {
		value, ok := o.Params[p.Key]
		if !ok {
			continue
		}
		if err := apihelpers.ParamToParamDesc(p).Validate(value); err != nil {
			return nil, nil, fmt.Errorf("--%s %q: %w", p.Key, value, err)
		}
		values[p.Prefix+p.Key] = value
		delete(rest, p.Key)
	}
	if err := initOperators(ops, rest); err != nil {
		return nil, nil, err
	}
	if len(rest) > 0 {
		names := slices.Sorted(maps.Keys(rest))
		return nil, nil, fmt.Errorf("no such parameter: --%s; `netgadget run --help` lists those that there are", strings.Join(names, ", --"))
	}
	return ops, values, nil
}

// dataOperators are IG's, by name; with its command line printer or without.
func dataOperators(print bool) []operators.DataOperator {
	registered := operators.GetDataOperators()
	ops := make([]operators.DataOperator, 0, len(registered)+2)
	for _, name := range slices.Sorted(maps.Keys(registered)) {
		ops = append(ops, registered[name])
	}
	ops = append(ops, ocihandler.OciHandler)
	if print {
		ops = append(ops, clioperator.CLIOperator)
	}
	return ops
}

func globalParams(op operators.DataOperator) *params.Params {
	return apihelpers.ToParamDescs(op.GlobalParams()).ToParams()
}

// instanceParams asks IG which parameters a run of the image takes.
func instanceParams(ctx context.Context, image Image, ops []operators.DataOperator) (api.Params, error) {
	gadgetCtx, err := image.context(ctx, slices.Clone(ops))
	if err != nil {
		return nil, err
	}
	if err := gadgetCtx.PrepareGadgetInfo(api.ParamValues{}); err != nil {
		return nil, fmt.Errorf("reading the gadget image: %w", err)
	}
	return gadgetCtx.Params(), nil
}

// initialized holds the operators that were: theirs is the state of the process.
var initialized = struct {
	sync.Mutex
	ops map[string]bool
}{ops: map[string]bool{}}

// initOperators initializes operators with their global parameters, and takes
// these out of values.
func initOperators(ops []operators.DataOperator, values map[string]string) error {
	initialized.Lock()
	defer initialized.Unlock()
	for _, op := range ops {
		global := globalParams(op)
		for _, p := range *global {
			value, ok := values[p.Key]
			if !ok {
				continue
			}
			if initialized.ops[op.Name()] {
				return fmt.Errorf("--%s can be given to the first run of a process only", p.Key)
			}
			if err := p.Set(value); err != nil {
				return fmt.Errorf("--%s %q: %w", p.Key, value, err)
			}
			delete(values, p.Key)
		}
		if initialized.ops[op.Name()] {
			continue
		}
		if err := op.Init(global); err != nil {
			return fmt.Errorf("initializing %s: %w", op.Name(), err)
		}
		initialized.ops[op.Name()] = true
	}
	return nil
}
