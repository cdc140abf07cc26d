//! Programs on the same cluster that also review, change or evict pods. What they do is in docs/coexistence.md.

mod evictor;
mod prefix;
