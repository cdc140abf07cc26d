//! The chart in manifests/chart, installed, upgraded and removed by Helm.
