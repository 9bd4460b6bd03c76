//! Style, script and icon: in the binary, served for ever under a name that changes with their content.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use data_encoding::HEXLOWER;
use ring::digest::{SHA256, digest};

/// One embedded file.
#[derive(Debug)]
pub struct Asset {
    content: &'static [u8],
    media_type: &'static str,
    name: String,
}

impl Asset {
    fn new(stem: &str, extension: &str, media_type: &'static str, content: &'static [u8]) -> Self {
        let hash = HEXLOWER.encode(digest(&SHA256, content).as_ref());
        Self { content, media_type, name: format!("{stem}-{}.{extension}", hash.get(..16).unwrap_or_default()) }
    }

    /// Its address on this hub.
    pub fn url(&self) -> String {
        format!("/assets/{}", self.name)
    }
}

/// The style sheet.
pub static STYLE: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("app", "css", "text/css; charset=utf-8", include_bytes!("../../assets/app.css")));
/// The script.
pub static SCRIPT: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("app", "js", "text/javascript; charset=utf-8", include_bytes!("../../assets/app.js")));
/// The icon.
pub static ICON: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("icon", "svg", "image/svg+xml", include_bytes!("../../assets/icon.svg")));

/// `GET /assets/{name}`.
pub async fn serve(Path(name): Path<String>) -> Result<Response, StatusCode> {
    let asset = [&STYLE, &SCRIPT, &ICON].into_iter().find(|asset| asset.name == name).ok_or(StatusCode::NOT_FOUND)?;
    let mut response = asset.content.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(asset.media_type));
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_asset_has_a_name_made_from_its_content_and_never_expires() {
        let name = STYLE.url().rsplit('/').next().expect("a name").to_owned();
        let response = serve(Path(name)).await.expect("found");
        assert_eq!(response.headers().get(header::CACHE_CONTROL).expect("set"), "public, max-age=31536000, immutable");
        assert!(serve(Path("app-0000000000000000.css".into())).await.is_err());
    }
}
