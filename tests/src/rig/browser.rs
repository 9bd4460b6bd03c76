//! A real browser: headless Chromium driven over WebDriver.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::{ChromiumLikeCapabilities, DesiredCapabilities, LoggingPrefsLogLevel, WebDriver};

use super::process::Process;
use super::wait::{SOON, until};

/// One browser with an empty profile; its methods are the WebDriver's, and those here.
///
/// Fields drop in order: the session, then the driver and the browser with it, then the profile.
#[derive(Debug)]
pub struct Browser {
    driver: WebDriver,
    _chromedriver: Process,
    _profile: TempDir,
}

/// How a page is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// In CSS pixels: 1440 is a desk, 390 a phone.
    pub width: u32,
    /// What the browser tells the page to prefer.
    pub theme: Theme,
}

/// The colour scheme that a page is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Theme {
    /// Dark on light.
    Light,
    /// Light on dark.
    Dark,
}

impl View {
    /// The four that a page is reviewed in.
    pub const ALL: [View; 4] = [
        View { width: 1440, theme: Theme::Light },
        View { width: 1440, theme: Theme::Dark },
        View { width: 390, theme: Theme::Light },
        View { width: 390, theme: Theme::Dark },
    ];
}

impl Browser {
    /// Starts one; needs Debian's `chromium` and `chromium-driver`.
    pub async fn start() -> Result<Self> {
        let profile = tempfile::tempdir()?;
        let mut chromedriver = Process::start_group(
            Command::new("chromedriver").args(["--port=0", "--allowed-ips=127.0.0.1"]),
            &profile.path().join("chromedriver.log"),
        )
        .context("starting chromedriver (Debian's package chromium-driver)")?;
        let port: u16 = until("chromedriver's port", SOON, || {
            chromedriver.check()?;
            Ok(port(&chromedriver.log()))
        })?;

        let mut wanted = DesiredCapabilities::chrome();
        for argument in [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--no-default-browser-check",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-default-apps",
            "--disable-sync",
            "--metrics-recording-only",
            "--hide-scrollbars",
            "--no-proxy-server",
        ] {
            wanted.add_arg(argument)?;
        }
        wanted.add_arg(&format!("--user-data-dir={}", profile.path().join("profile").display()))?;
        wanted.set_browser_log_level(LoggingPrefsLogLevel::All)?;
        let driver = WebDriver::new(format!("http://127.0.0.1:{port}"), wanted)
            .await
            .with_context(|| format!("opening a browser session; chromedriver said:\n{}", chromedriver.log()))?;
        let browser = Self { driver, _chromedriver: chromedriver, _profile: profile };
        browser.look(View::ALL[0]).await?;
        Ok(browser)
    }

    /// Changes the window's width and the colour scheme that pages are asked for.
    pub async fn look(&self, view: View) -> Result<()> {
        let phone = view.width < 600;
        let height = if phone { 844 } else { 900 };
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            json!({ "width": view.width, "height": height, "deviceScaleFactor": 1, "mobile": phone }),
        )
        .await?;
        let scheme = match view.theme {
            Theme::Light => "light",
            Theme::Dark => "dark",
        };
        self.devtools(
            "Emulation.setEmulatedMedia",
            json!({ "media": "", "features": [{ "name": "prefers-color-scheme", "value": scheme }] }),
        )
        .await?;
        Ok(())
    }

    /// Takes the page as it is now, to its full length, in all four views: `NAME-1440-light.png` and so on.
    pub async fn photograph(&self, name: &str) -> Result<Vec<PathBuf>> {
        let folder = screenshots()?;
        let mut taken = Vec::new();
        for view in View::ALL {
            self.look(view).await?;
            let path = folder.join(format!("{name}-{}-{}.png", view.width, format!("{:?}", view.theme).to_lowercase()));
            self.screenshot(&path).await?;
            taken.push(path);
        }
        self.look(View::ALL[0]).await?;
        Ok(taken)
    }

    /// Takes the page to its full length in the present view.
    pub async fn screenshot(&self, path: &Path) -> Result<()> {
        let taken =
            self.devtools("Page.captureScreenshot", json!({ "format": "png", "captureBeyondViewport": true })).await?;
        let picture = taken["data"].as_str().context("the browser gave no picture")?;
        let picture = data_encoding::BASE64.decode(picture.as_bytes()).context("reading the picture")?;
        std::fs::write(path, picture).with_context(|| format!("writing {}", path.display()))
    }

    /// How much wider than the window the page is, in pixels: more than 0 means scrolling sideways.
    pub async fn overflow(&self) -> Result<i64> {
        let width =
            self.driver.execute("return document.documentElement.scrollWidth - window.innerWidth", vec![]).await?;
        width.json().as_i64().context("the page's width is no number")
    }

    /// Warnings and errors that the page caused since the last call: scripts that failed, a policy that was violated.
    pub async fn complaints(&self) -> Result<Vec<String>> {
        let entries = self.driver.browser_log().await.context("reading the browser's log")?;
        Ok(entries
            .into_iter()
            .filter(|entry| matches!(entry.level.as_str(), "WARNING" | "SEVERE"))
            .map(|entry| entry.message)
            .collect())
    }

    /// Ends the session; dropping does it too, less politely.
    pub async fn quit(self) -> Result<()> {
        self.driver.clone().quit().await.context("closing the browser")
    }

    async fn devtools(&self, method: &str, parameters: Value) -> Result<Value> {
        self.driver.cdp().send_raw(method, parameters).await.with_context(|| format!("asking the browser for {method}"))
    }
}

impl Deref for Browser {
    type Target = WebDriver;

    fn deref(&self) -> &WebDriver {
        &self.driver
    }
}

/// Where pictures go: beside what is built.
fn screenshots() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().find(|path| path.join("CACHEDIR.TAG").is_file() || path.ends_with("target"));
    let folder = target.context("finding the target folder")?.join("screenshots");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

fn port(log: &str) -> Option<u16> {
    let (_, after) = log.split_once("started successfully on port ")?;
    after.split(|next: char| !next.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "data:text/html,<meta name=viewport content=width=device-width><title>Fleet</title>\
        <p id=scheme></p><script>scheme.textContent = matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light';\
        console.error('something broke')</script>";

    #[tokio::test]
    async fn the_browser_shows_a_page_in_the_view_asked_for() -> Result<()> {
        let browser = Browser::start().await?;
        browser.look(View { width: 390, theme: Theme::Dark }).await?;
        browser.goto(PAGE).await?;
        assert_eq!(browser.title().await?, "Fleet");
        assert_eq!(browser.find(thirtyfour::By::Id("scheme")).await?.text().await?, "dark");
        let width = browser.execute("return window.innerWidth", vec![]).await?;
        assert_eq!(width.json().as_i64(), Some(390));
        assert_eq!(browser.overflow().await?, 0);
        let complaints = browser.complaints().await?;
        assert!(complaints.iter().any(|said| said.contains("something broke")), "{complaints:?}");

        let picture = tempfile::NamedTempFile::new()?;
        browser.screenshot(picture.path()).await?;
        assert!(std::fs::read(picture.path())?.starts_with(b"\x89PNG"));
        browser.quit().await
    }
}
