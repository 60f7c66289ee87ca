// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Write writes policies as YAML documents, each below what there is to know of it,
// as comments.
func Write(w io.Writer, policies []networkingv1.NetworkPolicy, notes []Note) error {
	for i := range policies {
		text, err := yaml.Marshal(&policies[i])
		if err != nil {
			return fmt.Errorf("writing the policy %s: %w", policies[i].Name, err)
		}
		if i > 0 {
			fmt.Fprintln(w, "---")
		}
		for _, n := range notes {
			if n.Policy == policies[i].Namespace+"/"+policies[i].Name {
				fmt.Fprintln(w, "#", n.Text)
			}
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
	}
	return nil
}

// ReadPolicies reads YAML documents or JSON: NetworkPolicies, and lists of them, as
// kubectl get writes them. What is of another kind is an error.
func ReadPolicies(r io.Reader) ([]networkingv1.NetworkPolicy, error) {
	var all []networkingv1.NetworkPolicy
	documents := utilyaml.NewYAMLReader(bufio.NewReader(r))
	for n := 1; ; n++ {
		text, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err == nil {
			all, err = appendPolicies(all, text)
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
	}
}

func appendPolicies(all []networkingv1.NetworkPolicy, text []byte) ([]networkingv1.NetworkPolicy, error) {
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal(text, &kind); err != nil {
		return nil, err
	}
	switch kind.Kind {
	case "NetworkPolicy":
		var one networkingv1.NetworkPolicy
		err := yaml.UnmarshalStrict(text, &one)
		return append(all, one), err
	case "List", "NetworkPolicyList":
		var list networkingv1.NetworkPolicyList
		if err := yaml.UnmarshalStrict(text, &list); err != nil {
			return nil, err
		}
		for _, one := range list.Items {
			if one.Kind != "NetworkPolicy" {
				return nil, fmt.Errorf("a list has a %q, which is no NetworkPolicy", one.Kind)
			}
			all = append(all, one)
		}
		return all, nil
	case "":
		var nothing any
		if err := yaml.Unmarshal(text, &nothing); err == nil && nothing == nil { // comments alone
			return all, nil
		}
	}
	return nil, fmt.Errorf("kind %q is no NetworkPolicy", kind.Kind)
}
