//! What messages carry, in the kinds that clients of different makers know.

use bytes::Bytes;
use millrace_protocol::messages::client::{ContentKind, Reference, SendAck};
use millrace_protocol::prost::Message as _;

use crate::client::Client;
use crate::error::SendError;
use crate::event::Message;
use crate::messages::SendOptions;

/// A payload and its kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Text.
    Text(String),
    /// An image that is fetched over HTTP.
    Image(Reference),
    /// A file that is fetched over HTTP.
    File(Reference),
    /// Bytes of the application's own, and their kind: [`ContentKind::Custom`] or any from 16 on. Also what can't be read.
    Custom(u32, Bytes),
}

impl Content {
    fn read(kind: u32, payload: &Bytes) -> Self {
        let own = || Content::Custom(kind, payload.clone());
        let reference = || Reference::decode(payload.clone()).ok();
        match i32::try_from(kind).ok().and_then(|kind| ContentKind::try_from(kind).ok()) {
            Some(ContentKind::Text) => {
                str::from_utf8(payload).map_or_else(|_| own(), |text| Content::Text(text.to_owned()))
            }
            Some(ContentKind::Image) => reference().map_or_else(own, Content::Image),
            Some(ContentKind::File) => reference().map_or_else(own, Content::File),
            Some(ContentKind::Custom) | None => own(),
        }
    }

    fn written(self) -> (u32, Bytes) {
        match self {
            Content::Text(text) => (ContentKind::Text as u32, text.into()),
            Content::Image(image) => (ContentKind::Image as u32, image.encode_to_vec().into()),
            Content::File(file) => (ContentKind::File as u32, file.encode_to_vec().into()),
            Content::Custom(kind, payload) => (kind, payload),
        }
    }
}

impl Message {
    /// What it carries, by its kind.
    pub fn content(&self) -> Content {
        Content::read(self.content_kind, &self.payload)
    }
}

impl Client {
    /// Sends text, a reference to an image or a file, or bytes of the application's own. An image's or file's bytes go
    /// elsewhere first.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn send_content(&self, conversation: &str, content: Content) -> Result<SendAck, SendError> {
        let (content_kind, payload) = content.written();
        self.send_with(conversation, payload, SendOptions { content_kind, ..SendOptions::default() }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_read_as_they_were_written() {
        let (url, media_type, name) = ("https://a.example/1".into(), "image/png".into(), "cat.png".into());
        let image =
            Reference { url, media_type, name, bytes: 77, width: 3, height: 2, ..Reference::default() };
        for content in [
            Content::Text("tea?".into()),
            Content::Image(image.clone()),
            Content::File(image),
            Content::Custom(ContentKind::Custom as u32, Bytes::from_static(b"\xff")),
            Content::Custom(77, Bytes::from_static(b"moves")),
        ] {
            let (kind, payload) = content.clone().written();
            assert_eq!(Content::read(kind, &payload), content);
        }
        let broken = Bytes::from_static(b"\xff\xff");
        for kind in [ContentKind::Text, ContentKind::Image, ContentKind::File] {
            assert_eq!(Content::read(kind as u32, &broken), Content::Custom(kind as u32, broken.clone()));
        }
    }
}
