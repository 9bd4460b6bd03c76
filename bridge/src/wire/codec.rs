//! The packets of both versions, as the bridge knows them.

use bytes::BytesMut;
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::v5;
use tokio_util::codec::{Decoder, Encoder};

use super::{Incoming, Outgoing, Publish, WireError};

/// The packets of a version.
pub(super) enum Codec {
    Three(v4::Codec),
    Five(v5::Codec),
}

impl Decoder for Codec {
    type Item = Incoming;
    type Error = WireError;

    fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<Incoming>, WireError> {
        match self {
            Self::Three(codec) => Ok(codec.decode(bytes).map_err(WireError::Three)?.map(three)),
            Self::Five(codec) => codec.decode(bytes).map_err(WireError::Five)?.map(five).transpose(),
        }
    }
}

fn three(packet: v4::Packet) -> Incoming {
    match packet {
        v4::Packet::Publish(publish) => Incoming::Publish(Publish {
            topic: publish.topic,
            payload: publish.payload,
            qos: publish.qos as u8,
            retained: publish.retain,
            duplicate: publish.dup,
            packet_id: publish.pkid,
            content_type: None,
            properties: Vec::new(),
        }),
        v4::Packet::PubRel(release) => Incoming::Release(release.pkid),
        v4::Packet::PingResp => Incoming::Pong,
        v4::Packet::SubAck(answer) => {
            let refused = |code: &v4::SubscribeReasonCode| match code {
                v4::SubscribeReasonCode::Success(_) => None,
                v4::SubscribeReasonCode::Failure => Some("it gives no reason".to_owned()),
            };
            Incoming::Subscribed(answer.return_codes.iter().map(refused).collect())
        }
        v4::Packet::UnsubAck(_) => Incoming::Unsubscribed,
        _ => Incoming::Other,
    }
}

fn five(packet: v5::Packet) -> Result<Incoming, WireError> {
    Ok(match packet {
        v5::Packet::Publish(publish) => {
            let properties = publish.properties.unwrap_or_default();
            Incoming::Publish(Publish {
                topic: std::str::from_utf8(&publish.topic).map_err(|_| WireError::Topic)?.to_owned(),
                payload: publish.payload,
                qos: publish.qos as u8,
                retained: publish.retain,
                duplicate: publish.dup,
                packet_id: publish.pkid,
                content_type: properties.content_type,
                properties: properties.user_properties,
            })
        }
        v5::Packet::PubRel(release) => Incoming::Release(release.pkid),
        v5::Packet::PingResp(_) => Incoming::Pong,
        v5::Packet::SubAck(answer) => {
            let refused = |code: &v5::SubscribeReasonCode| match code {
                v5::SubscribeReasonCode::Success(_) => None,
                code => Some(format!("{code:?}")),
            };
            Incoming::Subscribed(answer.return_codes.iter().map(refused).collect())
        }
        v5::Packet::UnsubAck(_) => Incoming::Unsubscribed,
        v5::Packet::Disconnect(farewell) => {
            let more = farewell.properties.and_then(|told| told.reason_string);
            let more = more.map(|more| format!(", {more}")).unwrap_or_default();
            return Err(WireError::Ended(format!("{:?}{more}", farewell.reason_code)));
        }
        _ => Incoming::Other,
    })
}

impl Encoder<Outgoing> for Codec {
    type Error = WireError;

    fn encode(&mut self, packet: Outgoing, bytes: &mut BytesMut) -> Result<(), WireError> {
        match self {
            Self::Three(codec) => codec.encode(to_three(packet), bytes).map_err(WireError::Three),
            Self::Five(codec) => codec.encode(to_five(packet), bytes).map_err(WireError::Five),
        }
    }
}

fn to_three(packet: Outgoing) -> v4::Packet {
    match packet {
        Outgoing::Acknowledge(id) => v4::Packet::PubAck(v4::PubAck::new(id)),
        Outgoing::Receive(id) => v4::Packet::PubRec(v4::PubRec::new(id)),
        Outgoing::Complete(id) => v4::Packet::PubComp(v4::PubComp::new(id)),
        Outgoing::Ping => v4::Packet::PingReq,
        Outgoing::Subscribe { packet_id, filters, qos } => {
            let qos = rumqttc::mqttbytes::qos(qos).unwrap_or(rumqttc::mqttbytes::QoS::AtLeastOnce);
            let filters = filters.into_iter().map(|path| v4::SubscribeFilter::new(path, qos)).collect();
            v4::Packet::Subscribe(v4::Subscribe { pkid: packet_id, filters })
        }
        Outgoing::Unsubscribe { packet_id, filter } => {
            v4::Packet::Unsubscribe(v4::Unsubscribe { pkid: packet_id, topics: vec![filter] })
        }
        Outgoing::Disconnect => v4::Packet::Disconnect,
    }
}

fn to_five(packet: Outgoing) -> v5::Packet {
    match packet {
        Outgoing::Acknowledge(id) => v5::Packet::PubAck(v5::PubAck::new(id, None)),
        Outgoing::Receive(id) => v5::Packet::PubRec(v5::PubRec::new(id, None)),
        Outgoing::Complete(id) => v5::Packet::PubComp(v5::PubComp::new(id, None)),
        Outgoing::Ping => v5::Packet::PingReq(v5::PingReq),
        Outgoing::Subscribe { packet_id, filters, qos } => {
            let qos = rumqttc::v5::mqttbytes::qos(qos).unwrap_or(rumqttc::v5::mqttbytes::QoS::AtLeastOnce);
            // What the broker keeps is told when a subscription is new, and not again with each connection.
            let filter = |path| v5::Filter {
                retain_forward_rule: v5::RetainForwardRule::OnNewSubscribe,
                ..v5::Filter::new::<String>(path, qos)
            };
            let filters = filters.into_iter().map(filter).collect();
            v5::Packet::Subscribe(v5::Subscribe { pkid: packet_id, filters, properties: None })
        }
        Outgoing::Unsubscribe { packet_id, filter } => {
            v5::Packet::Unsubscribe(v5::Unsubscribe { pkid: packet_id, filters: vec![filter], properties: None })
        }
        Outgoing::Disconnect => {
            v5::Packet::Disconnect(v5::Disconnect::new(v5::DisconnectReasonCode::NormalDisconnection))
        }
    }
}
