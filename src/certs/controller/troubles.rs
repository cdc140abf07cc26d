//! Reports what is wrong with the Secret and the webhook configuration, once each (I/O).

use super::{Controller, Live, Memory, Stored};
use crate::{api::events::EventType, telemetry::Outcome};

/// Something that another client has to look at: the reason of its Event, and the note.
pub(super) type Trouble = (&'static str, String);

impl Controller {
    /// Reports each trouble that was not there at the last observation.
    pub(super) fn report_troubles(&self, stored: &Stored, live: &Live, memory: &mut Memory) {
        let mut troubles = live.troubles();
        if let Stored::Unreadable(why) = stored {
            let note = format!("unreadable: {why}; a replica restores it from memory, so do not restart the replicas");
            troubles.push(("SecretUnreadable", note));
        }
        for (reason, note) in troubles.iter().filter(|trouble| !memory.troubles.contains(trouble)) {
            tracing::error!(reason, note, "the served certificate stays in use");
            self.context.metrics.certificate_steps.get_or_create(&Outcome { result: "unreadable" }).inc();
            self.context.events.publish(self.objects.secret_reference(), EventType::Warning, reason, "Read", note);
        }
        memory.troubles = troubles;
    }
}
