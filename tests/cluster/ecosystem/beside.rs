//! Programs on the same cluster that also review, change or evict pods.
