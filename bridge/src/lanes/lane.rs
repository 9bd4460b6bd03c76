//! A lane: the queue before a log, and how far what was given to it has come.

use tokio::sync::watch;

use crate::intake::Intake;

/// A lane. The log's writer takes from it; writer and sink tell how far they are.
#[derive(Debug, Default)]
pub struct Lane {
    /// The queue.
    pub intake: Intake,
    reached: watch::Sender<Reached>,
}

#[derive(Debug, Default)]
struct Reached {
    /// Messages that were given to the lane and are in the log, or were passed over.
    written: u64,
    /// The log's last record then; `None` until the writer has begun.
    last: Option<u64>,
    /// Records of the log through this one are in Kafka, dead letters, or dropped as their class says.
    delivered: u64,
    /// Records are being written again at the log's end, and how often that was done.
    moving: bool,
    moves: u64,
}

impl Lane {
    /// So many more messages are in the log, whose last record is this one.
    pub fn written(&self, messages: usize, last: u64) {
        self.reached.send_modify(|reached| {
            reached.written += messages as u64;
            reached.last = Some(last);
        });
    }

    /// Records through this one need nothing more.
    pub fn delivered(&self, through: u64) {
        self.reached.send_if_modified(|reached| std::mem::replace(&mut reached.delivered, through) != through);
    }

    /// Records may be written again at the end from now on.
    pub fn moving(&self) {
        self.reached.send_modify(|reached| reached.moving = true);
    }

    /// They were, or some of them; the log's last record is this one now.
    pub fn moved(&self, last: u64) {
        self.reached.send_modify(|reached| {
            reached.moving = false;
            reached.moves += 1;
            reached.last = Some(last);
        });
    }

    /// Waits until all that was given to the lane by now is delivered. Gives `false` when that can't be told, because
    /// records were moved meanwhile.
    pub async fn is_through(&self) -> bool {
        let mut reached = self.reached.subscribe();
        let moves = reached.borrow().moves;
        let (given, mut last) = (self.intake.given(), None);
        loop {
            {
                let now = reached.borrow_and_update();
                if now.moves != moves {
                    return false;
                }
                if now.written >= given {
                    last = last.or(now.last);
                }
                if !now.moving && last.is_some_and(|last| last <= now.delivered) {
                    return true;
                }
            }
            if reached.changed().await.is_err() {
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::intake::Submission;

    /// Whether it is through by now; `None` while that is not known.
    fn now(future: std::pin::Pin<&mut impl Future<Output = bool>>) -> Option<bool> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(through) => Some(through),
            Poll::Pending => None,
        }
    }

    async fn give(lane: &Lane, count: usize) {
        let submission = || Submission { mqtt: 0, number: None, record: vec![1] };
        lane.intake.put((0..count).map(|_| submission()).collect()).await;
    }

    #[tokio::test]
    async fn it_is_through_when_what_it_was_given_before_is_delivered_and_no_sooner() {
        let lane = Lane::default();
        let mut through = pin!(lane.is_through());
        assert_eq!(now(through.as_mut()), None, "nobody knows yet what is in the log");
        lane.written(0, 5);
        assert_eq!(now(through.as_mut()), None, "what was there before");
        lane.delivered(5);
        assert_eq!(now(through.as_mut()), Some(true));

        give(&lane, 2).await;
        let mut through = pin!(lane.is_through());
        lane.delivered(9);
        assert_eq!(now(through.as_mut()), None, "it is not in the log yet");
        lane.written(1, 6);
        lane.written(1, 10);
        assert_eq!(now(through.as_mut()), None);
        give(&lane, 1).await;
        lane.written(1, 11);
        lane.delivered(10);
        assert_eq!(now(through.as_mut()), Some(true), "what came later is not waited for");
    }

    #[tokio::test]
    async fn what_is_moved_to_the_end_is_not_taken_for_delivered() {
        let lane = Lane::default();
        lane.written(0, 5);
        let mut through = pin!(lane.is_through());
        assert_eq!(now(through.as_mut()), None);
        lane.moving();
        lane.delivered(5);
        assert_eq!(now(through.as_mut()), None, "one of them may be on its way to the end");
        lane.moved(6);
        assert_eq!(now(through.as_mut()), Some(false));
        let mut through = pin!(lane.is_through());
        assert_eq!(now(through.as_mut()), None, "it is there");
        lane.delivered(6);
        assert_eq!(now(through.as_mut()), Some(true));
    }
}
