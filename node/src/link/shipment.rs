//! The shipped-log part of a session: a backlog of its own on a stream of its own, behind everything but live logs.

use protocol::message::{Acknowledge, Shipping, SpoolRange};
use protocol::{frame, shipping};
use transport::{Connection, FrameReader, FrameWriter, StreamError};

use super::TroubleKind;
use super::delivery::Delivery;
use super::session::Failure;
use crate::backlog::Backlog;

/// The shipment of one session.
pub(super) struct Shipment {
    backlog: Backlog,
    range: SpoolRange,
    stored: Option<Acknowledge>,
    writer: FrameWriter,
    reader: FrameReader,
}

impl Shipment {
    /// Opens its stream, which is the one after that of telemetry. `range` is what Hello said of the backlog.
    pub(super) async fn open(
        connection: &Connection,
        backlog: Backlog,
        range: SpoolRange,
        shipping: Shipping,
    ) -> Result<Self, Failure> {
        let (writer, reader) = connection.open(frame::MAX_SHIPMENT).await.map_err(StreamError::Closed)?;
        // Behind commands, and behind telemetry.
        writer.set_priority(-2);
        Ok(Self { backlog, range, stored: shipping.stored, writer, reader })
    }

    /// Ships until the session ends. A disk that can't be read holds up the logs alone.
    pub(super) async fn run(&mut self) -> Result<(), Failure> {
        match self.ship().await {
            Err(failure) if failure.trouble.kind == TroubleKind::Disk => {
                tracing::warn!(trouble = %failure.trouble, "no more logs are shipped in this session");
                std::future::pending().await
            }
            ended => ended,
        }
    }

    async fn ship(&mut self) -> Result<(), Failure> {
        let (delivery, _) = Delivery::open(&self.backlog, &self.range, self.stored).await?;
        let mut delivery = delivery.within(shipping::WINDOW);
        let mut appended = self.backlog.known();
        loop {
            delivery.written(appended.borrow_and_update().last);
            loop {
                let uploads = delivery.next(|_, _| ()).await?;
                if uploads.is_empty() {
                    break;
                }
                self.writer.send_all(&uploads).await?;
            }
            tokio::select! {
                biased;
                acknowledge = self.reader.recv::<Acknowledge>() => {
                    delivery.acknowledged(&acknowledge?.ok_or(StreamError::Finished)?).await?;
                }
                _ = appended.changed() => {}
            }
        }
    }
}

/// Ships, where there is something to ship; never ends otherwise.
pub(super) async fn run(shipment: &mut Option<Shipment>) -> Result<(), Failure> {
    match shipment {
        Some(shipment) => shipment.run().await,
        None => std::future::pending().await,
    }
}
