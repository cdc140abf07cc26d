//! The `ValidatingWebhookConfiguration`: without it, the API server does not call Pristine at all.
//!
//! | file | subject |
//! |---|---|
//! | `check` | what is weaker than shipped (pure) |
//! | `watch` | the only watch of the object |
//! | `enforcement` | reports what is weaker |

pub mod check;
pub mod enforcement;
pub mod watch;
