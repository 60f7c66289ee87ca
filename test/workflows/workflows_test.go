// SPDX-License-Identifier: Apache-2.0

// Package workflows tests what the project's workflows on GitHub are made of, and
// what they may do.
package workflows

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

const folder = "../../.github/workflows"

// pinned is an action of another repository by the commit, with the release that
// the commit is, for those who read and for those who renew it.
var pinned = regexp.MustCompile(`^[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$`)

// files are the workflows by name.
func files(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	names, err := filepath.Glob(filepath.Join(folder, "*.y*ml"))
	if err != nil || len(names) == 0 {
		t.Fatalf("wanted workflows in %s, got %q, %v", folder, names, err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		texts[filepath.Base(name)] = string(text)
	}
	return texts
}

// uses are the actions of a workflow, each with the comment behind it.
func uses(text string) (actions []string) {
	for line := range strings.Lines(text) {
		if _, action, found := strings.Cut(line, "uses:"); found {
			actions = append(actions, strings.TrimSpace(action))
		}
	}
	return actions
}

// A tag can be moved to other code; a commit cannot.
func TestActionsArePinnedByCommit(t *testing.T) {
	commits := map[string]map[string]bool{} // by action and release
	for name, text := range files(t) {
		for _, action := range uses(text) {
			if !pinned.MatchString(action) {
				t.Errorf("%s: wanted OWNER/NAME@COMMIT # vRELEASE, got %q", name, action)
				continue
			}
			repository, rest, _ := strings.Cut(action, "@")
			if commits[repository] == nil {
				commits[repository] = map[string]bool{}
			}
			commits[repository][rest] = true
		}
	}
	for repository, used := range commits {
		if len(used) > 1 {
			t.Errorf("%s: wanted one release of it in all workflows, got %q", repository, slices.Sorted(maps.Keys(used)))
		}
	}
}

// workflow is what a workflow may do.
type workflow struct {
	Permissions yaml.Node
	Jobs        map[string]struct {
		Permissions yaml.Node
		Steps       []step
	}
}

type step struct {
	Uses string
	Run  string
	With map[string]string
}

func read(t *testing.T, name, text string) (w workflow) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(text), &w); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return w
}

// What a workflow may do at most is said in it: the default of a repository can be
// anything. To write is a job's own permission.
func TestAWorkflowMayReadAndAJobSaysWhatItWrites(t *testing.T) {
	for name, text := range files(t) {
		var top map[string]string
		w := read(t, name, text)
		if err := w.Permissions.Decode(&top); err != nil || len(top) != 1 || top["contents"] != "read" {
			t.Errorf("%s: wanted the workflow's permissions to be contents: read, got %v, %v", name, top, err)
		}
		for job, j := range w.Jobs {
			if j.Permissions.Kind == yaml.ScalarNode {
				t.Errorf("%s, job %s: wanted permissions one by one, got %s", name, job, j.Permissions.Value)
			}
		}
	}
}

// The token that checkout leaves behind in the tree serves no step of ours.
func TestNoTokenIsLeftInTheTree(t *testing.T) {
	for name, text := range files(t) {
		for job, j := range read(t, name, text).Jobs {
			for _, s := range j.Steps {
				if strings.HasPrefix(s.Uses, "actions/checkout@") && s.With["persist-credentials"] != "false" {
					t.Errorf("%s, job %s: wanted persist-credentials: false, got %q", name, job, s.With["persist-credentials"])
				}
			}
		}
	}
}

// expression is one of GitHub's, which it puts into a script as text: what an
// outsider names (a branch, a title) would be run.
var expression = regexp.MustCompile(`\$\{\{[^}]*\}\}`)

func TestScriptsGetWhatOthersNameByTheEnvironment(t *testing.T) {
	for name, text := range files(t) {
		for job, j := range read(t, name, text).Jobs {
			for _, s := range j.Steps {
				for _, e := range expression.FindAllString(s.Run, -1) {
					if !strings.Contains(e, "matrix.") {
						t.Errorf("%s, job %s: wanted %s in env, got it in the script %q", name, job, e, s.Run)
					}
				}
			}
		}
	}
}
