// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"gadget.example/network/internal/policy"
)

// named gives drafts the names of their workloads, by namespace and name. Where
// two have the same, each says of what kind it is, or in the end by which labels.
func named(drafts map[string]*draft) []*draft {
	all := slices.Collect(maps.Values(drafts))
	for _, form := range []func(*draft) string{
		func(d *draft) string { return d.owner().Name },
		func(d *draft) string { return d.owner().Name + "-" + strings.ToLower(d.owner().Kind) },
		func(d *draft) string { return d.owner().Name + "-" + digest(text(d.selector)) },
	} {
		taken := map[name]int{}
		for _, d := range all {
			taken[name{d.namespace, d.name}]++
		}
		for _, d := range all {
			if d.name == "" || taken[name{d.namespace, d.name}] > 1 {
				d.name = subdomain(form(d))
			}
		}
	}
	slices.SortFunc(all, func(a, b *draft) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
	})
	return all
}

// owner is the first of those that share a policy.
func (d *draft) owner() policy.Owner {
	return slices.SortedFunc(maps.Keys(d.owners), func(a, b policy.Owner) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Kind, b.Kind))
	})[0]
}

var notInNames = regexp.MustCompile(`[^a-z0-9.-]+`)

// subdomain makes a valid name of an object (RFC 1123) of any string: one that is
// too long keeps its beginning and a digest of the whole.
func subdomain(s string) string {
	valid := strings.Trim(notInNames.ReplaceAllString(strings.ToLower(s), "-"), "-.")
	if len(valid) > validation.DNS1123SubdomainMaxLength {
		valid = strings.TrimRight(valid[:validation.DNS1123SubdomainMaxLength-9], "-.") + "-" + digest(s)
	}
	if len(validation.IsDNS1123Subdomain(valid)) > 0 { // a dot beside a dash, or nothing
		valid = "workload-" + digest(s)
	}
	return valid
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:4])
}
