"""A JSON endpoint that lists nodes, page by page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx2

from amygdala.errors import UserError, shown
from amygdala.live import Collected, Page, page_of, pages
from amygdala.patience import Limits, PatientTransport, address, headers, token_of
from amygdala.records import Fields


def _following(url: httpx2.URL, cursor: str, options: Mapping[str, Any], what: str) -> httpx2.URL:
    """Where the next page is: the cursor as a query parameter, or as a URL of the same server (which alone gets the token)."""
    if "cursor_parameter" in options:
        return url.copy_set_param(options["cursor_parameter"], cursor)
    try:
        following = url.join(cursor)
    except (httpx2.InvalidURL, ValueError):
        raise UserError(f"{what}: the next page's address {shown(cursor)} is no URL; set cursor_parameter?") from None
    if (following.scheme, following.host, following.port) != (url.scheme, url.host, url.port):
        raise UserError(f"{what}: the next page lies on another server ({address(str(following))}): not followed")
    return following


async def collect(options: Mapping[str, Any], limits: Limits, collected: Collected) -> None:
    """Add all nodes of the endpoint to `collected`. UserError where it cannot be reached or answers something else."""
    start = httpx2.URL(options["url"])
    what = f"{collected.what} ({address(options['url'])})"
    fields = Fields.of(options)
    transport = PatientTransport(what, limits, collected.say, options, streams=False)
    token = token_of(options, collected.what)
    async with httpx2.AsyncClient(
        transport=transport, headers=headers(token), timeout=limits.timeout_s, follow_redirects=False
    ) as client:

        async def page(cursor: str | None) -> Page:
            url = start if cursor is None else _following(start, cursor, options, what)
            response = await client.get(url)
            if response.is_redirect:
                where = address(str(url.join(response.headers.get("location", ""))))
                raise UserError(f"{what}: redirects to {where}: set `url` to where the endpoint lives")
            if response.status_code != 200:
                raise UserError(f"{what}: HTTP {response.status_code} {response.reason_phrase}")
            try:
                data = response.json()
            except (ValueError, RecursionError) as error:
                raise UserError(f"{what}: the answer is not JSON, or not all of it ({shown(error)})") from None
            return page_of(data, options, what, usual_next="next")

        async for found in pages(page, what, lambda: len(collected.nodes)):
            for record in found.items:
                try:
                    for raw in fields.nodes(record):
                        collected.add(raw)
                except ValueError as error:
                    raise UserError(f"{what}: {error} (in {collected.quoted(record)})") from None
