"""The probes of ``--check --connect``: connect to all providers, log in to all destinations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from trollmoves.config.config_file import Configuration
from trollmoves.config.environment import static_directory
from trollmoves.config.fetch_options import FetcherOptions, S3DownloaderOptions
from trollmoves.config.options import (
    ChainOptions,
    ClientOptions,
    DispatchConfig,
    DispatcherOptions,
    MoveItOptions,
    ServerOptions,
    TargetOptions,
)
from trollmoves.config.targets import base_url, config_of
from trollmoves.errors import TrollmovesError
from trollmoves.messaging.check import check_publisher
from trollmoves.movers.check import check_destination
from trollmoves.net import urls


@dataclass(frozen=True)
class Probe:
    """One probe; ``run`` returns a text that begins with ``ok``, or raises."""

    subject: str
    run: Callable[[], str]

    def result(self) -> tuple[bool, str]:
        """Run; return True after a success, and one line without secrets."""
        passed = False
        try:
            text, passed = self.run(), True
        except TrollmovesError as error:
            text = f"FAILED: {error}"
        except Exception as error:  # a library may raise any exception; the other probes must run
            text = f"FAILED: {type(error).__name__}: {error}"
        return passed, " ".join(urls.redact_text(f"{self.subject}: {text}").split())


def probes(configuration: Configuration[Any]) -> Iterator[Probe]:
    """Yield a probe for each provider and each destination of the sections, in their order."""
    if isinstance(configuration.process, DispatcherOptions):
        for address in configuration.process.subscribe_addresses:
            yield _provider(address)
    for name, chain in configuration.sections.items():
        for probe in _chain_probes(chain):
            yield Probe(f"[{name}] {probe.subject}", probe.run)


def _chain_probes(chain: ChainOptions) -> Iterator[Probe]:
    if isinstance(chain, ClientOptions):
        yield from (_provider(provider.address) for provider in chain.providers)
        if chain.destination:
            yield _destination(chain.destination, chain.login or "", {})
    elif isinstance(chain, MoveItOptions):
        yield from (_delivery(config_of(url), chain.connection_parameters) for url in chain.destinations)
    elif isinstance(chain, ServerOptions):
        yield from (_provider(address if "://" in address else f"tcp://{address}") for address in chain.addresses)
    elif isinstance(chain, TargetOptions):
        yield from (_delivery(config, chain.connection_parameters) for config in chain.dispatch_configs)
    elif isinstance(chain, FetcherOptions | S3DownloaderOptions):
        yield from _fetch_probes(chain)


def _delivery(config: DispatchConfig, attrs: Mapping[str, Any]) -> Probe:
    base = base_url(config.host)
    directory = urls.join(base, config.directory) if base.path else base._replace(path=config.directory)
    return _destination(directory.geturl(), "", attrs)


def _fetch_probes(chain: FetcherOptions | S3DownloaderOptions) -> Iterator[Probe]:
    if isinstance(chain, FetcherOptions):
        addresses, directory = chain.subscriber_config__addresses, chain.destination
    else:
        addresses, directory = chain.subscriber_addresses, chain.download_destination
        yield Probe(f"bucket {chain.bucket}", partial(_check_bucket, chain))
    yield from map(_provider, addresses)
    yield _destination(directory, "", {}, is_created=isinstance(chain, FetcherOptions))


def _check_bucket(chain: S3DownloaderOptions) -> str:
    from trollmoves.movers.s3_download import S3Reader

    return S3Reader().check_bucket(chain.bucket, chain.connection_parameters)


def _provider(address: str) -> Probe:
    return Probe(f"provider {address}", partial(check_publisher, address))


def _destination(text: str, login: str, attrs: Mapping[str, Any], *, is_created: bool = True) -> Probe:
    """Return the probe of a directory, up to the first part with a field."""
    directory = static_directory(text)
    subject = f"destination {urls.redacted(urls.without_password(directory))}"
    if "{" in text and directory.endswith("//"):
        return Probe(subject, lambda: "ok, not checked: the host depends on metadata")
    url = urls.parse(urls.with_login(directory, login) if login else directory)
    return Probe(subject, partial(check_destination, url, attrs, is_created=is_created))
