//! Controllers that keep the cluster as a repository says: Flux, Argo CD, `kubectl apply --prune`.
