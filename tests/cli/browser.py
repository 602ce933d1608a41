"""Chromium without a window, and the page of `mqtool ui` in it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.brokers import skip_or_fail
from tests.cli.shell import wait_until

#: Debian's packages chromium and chromium-driver.
_BROWSER, _DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="session")
def chromedriver() -> Iterator[Any]:
    """One browser for all tests of this worker, because starting it takes seconds."""
    if _BROWSER is None or _DRIVER is None:
        skip_or_fail("no chromium and chromedriver are installed (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = _BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(_DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def chromium(chromedriver: Any) -> Iterator[Any]:
    """The browser. After the test, it shows an empty page, because a page with a picture is busy."""
    yield chromedriver
    chromedriver.get("about:blank")


class Page:
    """The page in the browser, as a user sees and uses it."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        self.url = url
        self.resize(1280)
        driver.get("about:blank")
        driver.get_log("browser")
        driver.get(url)

    def resize(self, width: int) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def find(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def ask(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def click(self, selector: str, which: int = 0) -> None:
        """Click an element; again, if the page has just replaced it, or has moved something over it."""
        from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException

        def is_clicked() -> bool:
            with suppress(ElementClickInterceptedException, StaleElementReferenceException, IndexError):
                self.find(selector)[which].click()
                return True
            return False

        self.until(is_clicked, f"a click on {selector}")

    def nodes(self) -> dict[str, str]:
        """Return the texts of the boxes, by role and name."""
        found = self.ask(
            "return [...document.querySelectorAll('.node')].map(e => [e.dataset.role, e.dataset.name, e.ariaLabel])"
        )
        return {f"{role} {name}": label.partition(": ")[2] for role, name, label in found}

    def dots(self, how: str = "resting") -> list[tuple[str, str]]:
        """Return the states of the messages drawn within boxes, each with its box."""
        return [
            (fate, node)
            for fate, node in self.ask(
                """
                const box = id => [...document.querySelectorAll('.node')].find(e => e.dataset.id === id);
                return [...document.querySelectorAll('.dot.' + arguments[0])].filter(dot => {
                  if (arguments[0] === 'moving') return true;
                  const inner = dot.getBoundingClientRect(), outer = box(dot.dataset.node).getBoundingClientRect();
                  return outer.left < inner.left && inner.right < outer.right && outer.top < inner.top
                    && inner.bottom <= outer.bottom + 4;
                }).map(dot => [dot.dataset.fate, dot.dataset.node]);
                """,
                how,
            )
        ]

    def until(self, condition: Callable[[], object], what: str) -> None:
        wait_until(condition, lambda: f"{what}: {self.nodes()} {self.dots()} {self.text('#state')}", 60)

    def text(self, selector: str) -> str:
        return str(
            self.ask("const e = document.querySelector(arguments[0]); return e.innerText ?? e.textContent", selector)
        )

    def said(self) -> str:
        """Open the table of events, and return its sentences."""
        self.ask("if (document.querySelector('#tables').hidden) document.querySelector('#table').click()")
        return self.text("#happened tbody")

    def press(self, keys: str) -> None:
        """Press keys, wherever the focus is: the box that has it may disappear at any moment."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(keys).perform()

    def act(self, action: str, **fields: str) -> None:
        """Fill in the form of an action and run it."""
        self.fill_in(action, **fields)
        self.ask("document.querySelector('#run').click()")

    def fill_in(self, action: str, **fields: str) -> None:
        """Fill in the form of an action."""
        fill = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event(arguments[2], {bubbles: true}))"
        self.until(lambda: self.find(f"#action option[value={action}]"), "the action")
        self.ask(fill, self.find("#action")[0], action, "change")
        for name, value in fields.items():
            self.ask(fill, self.find(f"#fields [name={name}]")[0], value, "input")

    def complaints(self) -> list[str]:
        """Return what the browser has logged: errors, and violations of the content security policy."""
        return [each["message"] for each in self.driver.get_log("browser")]
