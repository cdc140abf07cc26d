//! The `ValidatingWebhookConfiguration`: without it, the API server does not call Pristine at all.

pub mod check;
pub mod enforcement;
