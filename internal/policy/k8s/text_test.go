// SPDX-License-Identifier: Apache-2.0

package k8s_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"gadget.example/network/internal/policy"
	"gadget.example/network/internal/policy/k8s"
)

func policiesOf(recorded []policy.Connection, cluster *k8s.Cluster) []networkingv1.NetworkPolicy {
	policies, _ := k8s.Generate(recorded, cluster)
	return policies
}

func labelsText(labels map[string]string) string {
	var pairs []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, key+"="+labels[key])
	}
	return strings.Join(pairs, ",")
}

func peersText(peers []networkingv1.NetworkPolicyPeer) string {
	var all []string
	for _, p := range peers {
		switch {
		case p.IPBlock != nil:
			all = append(all, p.IPBlock.CIDR)
		case p.NamespaceSelector != nil:
			all = append(all, p.NamespaceSelector.MatchLabels[corev1.LabelMetadataName]+":"+labelsText(p.PodSelector.MatchLabels))
		default:
			all = append(all, labelsText(p.PodSelector.MatchLabels))
		}
	}
	return strings.Join(all, ",")
}

func portsText(ports []networkingv1.NetworkPolicyPort) string {
	var all []string
	for _, p := range ports {
		all = append(all, fmt.Sprintf("%d/%s", p.Port.IntVal, *p.Protocol))
	}
	return strings.Join(all, ",")
}
