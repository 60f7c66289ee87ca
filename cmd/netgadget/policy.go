// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"gadget.example/network/internal/policy"
	"gadget.example/network/internal/policy/k8s"
)

// statusTrouble is the exit status of a check that could not be made, as with
// diff(1) and grep(1): 1 says that it was, and found something.
const statusTrouble = 2

// policyFlags is what the command line of `policy` says.
type policyFlags struct {
	format, check, cluster string
}

func newPolicyCommand() *cobra.Command {
	f := &policyFlags{}
	cmd := &cobra.Command{
		Use:   "policy (--format k8s | --check POLICIES) [flags] [FILE...]",
		Short: "Make policies of recorded connections, or check them against policies",
		Long: "Reads recorded connections: what `kubectl gadget run network-connections -o json`\n" +
			"has printed, or network in its place, or `netgadget run`. From standard input where\n" +
			"no FILE is given, or - is.\n\n" +
			"With --format k8s it writes a Kubernetes NetworkPolicy for each workload, which\n" +
			"allows what was seen and nothing else: what its pods sent, answered or not, and what\n" +
			"they received at ports where somebody listened. Whatever else is to be known of them\n" +
			"is said on standard error, and above each policy.\n\n" +
			"With --check it prints what of the recording given NetworkPolicies would block, and\n" +
			"exits with 1 if there is anything, with 2 if it could not tell.\n\n" +
			"What a recording does not have, the cluster has: at which ports and addresses a\n" +
			"Service's calls arrive, for one.\n" +
			"  kubectl get services,endpointslices,pods,namespaces -A -o json > cluster.json",
		Example: "  kubectl gadget run network-connections:latest -A -o json --timeout 600 > seen.json\n" +
			"  netgadget policy --format k8s --cluster cluster.json seen.json > policies.yaml\n" +
			"  kubectl apply --dry-run=server -f policies.yaml\n" +
			"  netgadget policy --check policies.yaml --cluster cluster.json later.json",
	}
	cmd.Flags().StringVar(&f.format, "format", "", "make policies: k8s")
	cmd.Flags().StringVar(&f.check, "check", "", "print what these policies (a file, YAML) would block")
	cmd.Flags().StringVar(&f.cluster, "cluster", "", "what the cluster is (a file, see above)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case f.format == "" && f.check == "":
			return errors.New("make policies by --format k8s, or check some by --check POLICIES")
		case f.format != "" && f.check != "":
			return errors.New("--format makes policies and --check checks some: one of them")
		case f.check == "":
			return f.make(cmd, args)
		}
		blocked, err := f.checkAll(cmd, args)
		if err != nil {
			return exitStatus{status: statusTrouble, err: err}
		}
		if blocked {
			return exitStatus{status: 1}
		}
		return nil
	}
	return cmd
}

func (f *policyFlags) make(cmd *cobra.Command, files []string) error {
	if f.format != "k8s" {
		return fmt.Errorf("--format %q: k8s is the one there is", f.format)
	}
	recorded, cluster, err := f.read(cmd, files)
	if err != nil {
		return err
	}
	policies, notes := k8s.Generate(recorded, cluster)
	say(cmd, notes)
	if len(policies) == 0 {
		return fmt.Errorf("no policy: of the rows that were read (%d), none is of a pod that one could select", len(recorded))
	}
	return k8s.Write(cmd.OutOrStdout(), policies, notes)
}

// checkAll prints what would be blocked, and tells whether anything would.
func (f *policyFlags) checkAll(cmd *cobra.Command, files []string) (bool, error) {
	policies, err := readFile(cmd, f.check, k8s.ReadPolicies)
	if err != nil {
		return false, err
	}
	if len(policies) == 0 {
		return false, fmt.Errorf("%s has no NetworkPolicy", f.check)
	}
	recorded, cluster, err := f.read(cmd, files)
	if err != nil {
		return false, err
	}
	report, err := k8s.Check(policies, recorded, cluster)
	if err != nil {
		return false, err
	}
	for _, b := range report.Blocked {
		fmt.Fprintln(cmd.OutOrStdout(), b)
	}
	say(cmd, report.Notes)
	fmt.Fprintf(cmd.ErrOrStderr(), "netgadget: %d of %d connections would be blocked\n", len(report.Blocked), report.Decided)
	return len(report.Blocked) > 0, nil
}

func (f *policyFlags) read(cmd *cobra.Command, files []string) (recorded []policy.Connection, cluster *k8s.Cluster, err error) {
	if f.cluster != "" {
		if cluster, err = readFile(cmd, f.cluster, k8s.ReadCluster); err != nil {
			return nil, nil, err
		}
	}
	if len(files) == 0 {
		files = []string{"-"}
	}
	for _, file := range files {
		of, err := readFile(cmd, file, policy.Read)
		if err != nil {
			return nil, nil, err
		}
		recorded = append(recorded, of...)
	}
	if len(recorded) == 0 {
		return nil, nil, errors.New("nothing was recorded: no row in what was read")
	}
	return recorded, cluster, nil
}

// readFile reads a file, or standard input for -.
func readFile[T any](cmd *cobra.Command, path string, read func(io.Reader) (T, error)) (T, error) {
	from, of := cmd.InOrStdin(), "standard input"
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			var none T
			return none, err
		}
		defer file.Close()
		from, of = file, path
	}
	all, err := read(from)
	if err != nil {
		return all, fmt.Errorf("%s: %w", of, err)
	}
	return all, nil
}

func say(cmd *cobra.Command, notes []k8s.Note) {
	for _, note := range notes {
		fmt.Fprintln(cmd.ErrOrStderr(), "netgadget:", note)
	}
}
