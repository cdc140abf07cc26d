// gitops-engine keeps a cluster as the manifests in a folder say, with the code of Argo CD: every round it compares the
// live objects with the manifests, and with --self-heal it syncs what differs. It prints a line of JSON for each round.
// It ends after --rounds, or when it is killed.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/argoproj/argo-cd/gitops-engine/pkg/cache"
	"github.com/argoproj/argo-cd/gitops-engine/pkg/diff"
	"github.com/argoproj/argo-cd/gitops-engine/pkg/engine"
	"github.com/argoproj/argo-cd/gitops-engine/pkg/sync"
	"github.com/argoproj/argo-cd/gitops-engine/pkg/utils/kube"
	"github.com/argoproj/argo-cd/gitops-engine/pkg/utils/tracing"
	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// How Argo CD finds what belongs to an application, since its version 3.
const trackingID = "argocd.argoproj.io/tracking-id"

// The field manager of Argo CD.
const manager = "argocd-controller"

type options struct {
	folder, app                                                  string
	prune, replace, serverSide, serverSideDiff, selfHeal, always bool
}

type application struct {
	options
	config *rest.Config
	live   cache.ClusterCache
	engine engine.GitOpsEngine
}

// What a round found, and what it did about it.
type round struct {
	Round     int          `json:"round"`
	OutOfSync []difference `json:"outOfSync"`
	// Live objects of the application that the folder does not contain.
	Extra  []string          `json:"extra"`
	Synced map[string]string `json:"synced,omitempty"`
	Error  string            `json:"error,omitempty"`
}

type difference struct {
	Object string `json:"object"`
	// What a sync would change, as a JSON merge patch; none if the object is missing.
	Change json.RawMessage `json:"change,omitempty"`
}

func main() {
	var o options
	var rounds int
	var interval time.Duration
	flag.StringVar(&o.app, "app", "pristine", "the name of the application")
	flag.BoolVar(&o.prune, "prune", false, "delete objects of the application that the folder does not contain")
	flag.BoolVar(&o.replace, "replace", false, "sync with the option Replace=true")
	flag.BoolVar(&o.serverSide, "server-side", false, "sync with the option ServerSideApply=true")
	flag.BoolVar(&o.serverSideDiff, "server-side-diff", false, "compare with the option ServerSideDiff=true")
	flag.BoolVar(&o.selfHeal, "self-heal", false, "sync in each round that finds a difference")
	flag.BoolVar(&o.always, "always", false, "sync in every round")
	flag.IntVar(&rounds, "rounds", 0, "end after so many rounds; 0 is never")
	flag.DurationVar(&interval, "interval", 3*time.Second, "from one round to the next")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: gitops-engine [FLAGS] FOLDER")
		os.Exit(2)
	}
	o.folder = flag.Arg(0)
	if err := run(context.Background(), o, rounds, interval); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, rounds int, interval time.Duration) error {
	loading := clientcmd.NewDefaultClientConfigLoadingRules()
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(loading, nil).ClientConfig()
	if err != nil {
		return fmt.Errorf("reading the kubeconfig: %w", err)
	}
	// As the application controller: it has 50 and 100.
	config.QPS, config.Burst = 50, 100
	remember := cache.SetPopulateResourceInfoHandler(func(object *unstructured.Unstructured, _ bool) (any, bool) {
		id := object.GetAnnotations()[trackingID]
		return id, id != ""
	})
	live := cache.NewClusterCache(config, cache.SetLogr(logr.Discard()), remember)
	a := application{o, config, live, engine.NewEngine(config, live, engine.WithLogr(logr.Discard()))}
	stop, err := a.engine.Run()
	if err != nil {
		return fmt.Errorf("reading the cluster: %w", err)
	}
	defer stop()
	output := json.NewEncoder(os.Stdout)
	for n := 1; rounds == 0 || n <= rounds; n++ {
		if n > 1 {
			time.Sleep(interval)
		}
		found := round{Round: n, OutOfSync: []difference{}, Extra: []string{}}
		if err := a.reconcile(ctx, &found); err != nil {
			found.Error = err.Error()
		}
		if err := output.Encode(found); err != nil {
			return fmt.Errorf("printing: %w", err)
		}
	}
	return nil
}

func (a *application) reconcile(ctx context.Context, r *round) error {
	targets, err := manifests(a.folder, a.app)
	if err != nil {
		return err
	}
	isOurs := func(object *cache.Resource) bool {
		id, _ := object.Info.(string)
		// An object that was copied from one of ours, as an EndpointSlice from its Service, has the ID of another object.
		return id != "" && id == tracking(a.app, object.ResourceKey())
	}
	managed, err := a.live.GetManagedLiveObjs(targets, isOurs)
	if err != nil {
		return fmt.Errorf("finding the live objects: %w", err)
	}
	compared := sync.Reconcile(targets, managed, "default", a.live)
	settings := []diff.Option{diff.WithLogr(logr.Discard()), diff.WithManager(manager), diff.WithGVKParser(a.live.GetGVKParser())}
	if a.serverSide {
		settings = append(settings, diff.WithStructuredMergeDiff(true))
	}
	if a.serverSideDiff {
		kubectl := kube.KubectlCmd{Log: logr.Discard(), Tracer: tracing.NopTracer{}}
		applier, cleanup, err := kubectl.ManageServerSideDiffDryRuns(a.config)
		if err != nil {
			return fmt.Errorf("preparing the server-side diff: %w", err)
		}
		defer cleanup()
		runner := diff.NewK8sServerSideDryRunner(applier)
		settings = append(settings, diff.WithServerSideDiff(true), diff.WithServerSideDryRunner(runner))
	}
	differences, err := diff.DiffArray(compared.Target, compared.Live, settings...)
	if err != nil {
		return fmt.Errorf("comparing: %w", err)
	}
	for i, result := range differences.Diffs {
		target := compared.Target[i]
		switch {
		case target == nil:
			r.Extra = append(r.Extra, name(kube.GetResourceKey(compared.Live[i])))
		case compared.Live[i] == nil:
			r.OutOfSync = append(r.OutOfSync, difference{Object: name(kube.GetResourceKey(target))})
		case result.Modified:
			change, err := jsonpatch.CreateMergePatch(result.NormalizedLive, result.PredictedLive)
			if err != nil {
				return fmt.Errorf("describing a difference: %w", err)
			}
			r.OutOfSync = append(r.OutOfSync, difference{Object: name(kube.GetResourceKey(target)), Change: change})
		}
	}
	sort.Strings(r.Extra)
	isDue := a.selfHeal && (len(r.OutOfSync) > 0 || a.prune && len(r.Extra) > 0)
	if !isDue && !a.always {
		return nil
	}
	results, err := a.engine.Sync(ctx, targets, isOurs, "1", "default", sync.WithLogr(logr.Discard()), sync.WithPrune(a.prune),
		sync.WithReplace(a.replace), sync.WithServerSideApply(a.serverSide), sync.WithServerSideApplyManager(manager))
	r.Synced = map[string]string{}
	for _, result := range results {
		r.Synced[name(result.ResourceKey)] = strings.TrimSpace(fmt.Sprintf("%s %s", result.Status, result.Message))
	}
	if err != nil {
		return fmt.Errorf("syncing: %w", err)
	}
	return nil
}

// All objects of the YAML files in the folder, with the annotation by which Argo CD finds them again.
func manifests(folder, app string) ([]*unstructured.Unstructured, error) {
	files, err := filepath.Glob(filepath.Join(folder, "*.yaml"))
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", folder, err)
	}
	var all []*unstructured.Unstructured
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading a manifest: %w", err)
		}
		objects, err := kube.SplitYAML(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, objects...)
	}
	for _, object := range all {
		annotations := object.GetAnnotations()
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[trackingID] = tracking(app, kube.GetResourceKey(object))
		object.SetAnnotations(annotations)
	}
	return all, nil
}

func tracking(app string, key kube.ResourceKey) string {
	return fmt.Sprintf("%s:%s/%s:%s/%s", app, key.Group, key.Kind, key.Namespace, key.Name)
}

func name(key kube.ResourceKey) string { return key.Kind + "/" + key.Name }
