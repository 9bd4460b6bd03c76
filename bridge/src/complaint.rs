//! Says of what goes on that it does: once when it begins, and then now and again.

use std::time::{Duration, Instant};

/// What goes on is said again after this.
const REPEAT: Duration = Duration::from_secs(60);

/// A complaint.
#[derive(Debug, Default)]
pub struct Complaint(Option<Instant>);

impl Complaint {
    /// It goes on; whether that is to be said now.
    pub fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|said| said.elapsed() > REPEAT);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }

    /// It is over; whether it was ever said.
    pub fn is_over(&mut self) -> bool {
        self.0.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_said_once_and_then_once_a_minute() {
        let mut complaint = Complaint::default();
        assert!(!complaint.is_over());
        assert_eq!((0..1000).filter(|_| complaint.is_due()).count(), 1);
        complaint.0 = Instant::now().checked_sub(REPEAT + Duration::from_secs(1));
        assert!(complaint.is_due() && !complaint.is_due());
        assert!(complaint.is_over() && complaint.is_due());
    }
}
