// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"maps"
	"regexp"
	"slices"
	"strings"
)

// generated are labels that tell one pod, or one revision, from the next of the
// same workload: controllers add them, and so does the API server (of the zone and
// the region of a pod's node). A policy that had them would fit no other pod.
var generated = map[string]bool{
	"apps.kubernetes.io/pod-index":             true, // StatefulSet
	"batch.kubernetes.io/controller-uid":       true, // Job
	"batch.kubernetes.io/job-completion-index": true,
	"controller-revision-hash":                 true, // DaemonSet, StatefulSet
	"controller-uid":                           true,
	"pod-template-generation":                  true, // DaemonSet
	"pod-template-hash":                        true, // Deployment
	"rollouts-pod-template-hash":               true, // Argo Rollouts
	"statefulset.kubernetes.io/pod-name":       true,
	"topology.kubernetes.io/region":            true,
	"topology.kubernetes.io/zone":              true,
}

// jobName are the labels with a Job's name. A CronJob names its Jobs after itself
// and the minute they were due, in minutes since 1970.
var (
	jobName    = map[string]bool{"job-name": true, "batch.kubernetes.io/job-name": true}
	ofACronJob = regexp.MustCompile(`-\d{8}$`)
)

// stable are the labels that the pods of a workload keep.
func stable(labels map[string]string) map[string]string {
	kept := maps.Clone(labels)
	maps.DeleteFunc(kept, func(key, value string) bool {
		return generated[key] || jobName[key] && ofACronJob.MatchString(value)
	})
	return kept
}

// common are the labels that both have, with the same value.
func common(a, b map[string]string) map[string]string {
	both := maps.Clone(a)
	maps.DeleteFunc(both, func(key, value string) bool {
		other, ok := b[key]
		return !ok || other != value
	})
	return both
}

// selects tells whether labels has all that selector asks for.
func selects(selector, labels map[string]string) bool {
	return len(common(selector, labels)) == len(selector)
}

// text is labels as key=value,… by key: what is equal reads equal.
func text(labels map[string]string) string {
	var pairs []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, key+"="+labels[key])
	}
	return strings.Join(pairs, ",")
}
