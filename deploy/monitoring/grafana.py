"""`python -m deploy.monitoring.grafana [--check]`: the views as dashboards for Grafana."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path
from typing import Final, TypeVar

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
)

from deploy.local.command_line import Flag, make_app, run_app
from deploy.monitoring.panels import Line, Panel, Shape, Unit, View
from deploy.monitoring.views import VIEWS

DIRECTORY: Final = Path(__file__).with_name("dashboards")
FIGURE_HEIGHT: Final = 4
HEIGHT: Final = 8
_SOURCE: Final = "datasource"
P = TypeVar("P", stat.Panel, timeseries.Panel)
_PROMETHEUS: Final = DataSourceRef(type_val="prometheus", uid=f"${{{_SOURCE}}}")

app = make_app("deploy.monitoring.grafana", "Write deploy/monitoring/dashboards from the views.")


def content(view: View) -> str:
    """The JSON of a view's dashboard, as it has to be."""
    made = (
        dashboard.Dashboard(view.title)
        .uid(f"tally-{view.name}")
        .description(view.description)
        .tags(["tally", "generated"])
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable(_SOURCE).label("Prometheus").type("prometheus"))
    )
    numbers = count(1)
    for row in view.rows:
        made.with_row(dashboard.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            drawn = _figure(panel) if panel.shape is Shape.FIGURE else _lines(panel)
            made.with_panel(drawn.id(next(numbers)))
    return JSONEncoder(sort_keys=True, indent=1).encode(made.build()) + "\n"


def file(view: View) -> Path:
    """Where the dashboard is committed."""
    return DIRECTORY / f"{view.name}.json"


def _described(made: P, panel: Panel) -> P:
    """What panels of both kinds have."""
    made.title(panel.title).description(panel.description).datasource(_PROMETHEUS)
    made.unit(panel.unit).min(0).span(panel.width)
    for number, line in enumerate(panel.lines):
        made.with_target(_target(number, line))
    return made


def _figure(panel: Panel) -> stat.Panel:
    return (
        _described(stat.Panel(), panel)
        .height(FIGURE_HEIGHT)
        .graph_mode(kinds.BigValueGraphMode.AREA)
        .color_mode(kinds.BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds(panel))
    )


def _lines(panel: Panel) -> timeseries.Panel:
    made = (
        _described(timeseries.Panel(), panel)
        .height(HEIGHT)
        .line_width(1)
        .fill_opacity(20 if panel.shape is Shape.STACK else 5)
        .show_points(kinds.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(kinds.LegendDisplayMode.LIST)
            .placement(kinds.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(kinds.TooltipDisplayMode.MULTI)
            .sort(kinds.SortOrder.DESCENDING)
        )
    )
    if panel.shape is Shape.STACK:
        made.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL))
    if panel.unit is Unit.SWITCH:
        made.max(1).line_interpolation(kinds.LineInterpolation.STEP_AFTER)
    if panel.limits is not None:
        made.thresholds(_thresholds(panel)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED)
        )
    return made


def _target(number: int, line: Line) -> prometheus.Dataquery:
    labels = " ".join(f"{{{{{label}}}}}" for label in line.query.by)
    return (
        prometheus.Dataquery()
        .ref_id("ABCDEF"[number])
        .datasource(_PROMETHEUS)
        .expr(line.query.promql())
        .legend_format(f"{line.name} {labels}".strip())
    )


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    steps = [Threshold(color="green")]
    if panel.limits is not None:
        if panel.limits.warning < panel.limits.bad:
            steps.append(Threshold(color="orange", value=panel.limits.warning))
        steps.append(Threshold(color="red", value=panel.limits.bad))
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


@app.default
def main(*, check: Flag = False) -> int:
    """Write the dashboards; with --check write nothing, and exit 1 if one is not up to date."""
    stale = False
    for view in VIEWS:
        text = content(view)
        if not check:
            file(view).write_text(text, encoding="utf-8")
        elif not file(view).is_file() or file(view).read_text(encoding="utf-8") != text:
            sys.stderr.write(
                f"deploy/monitoring/dashboards/{file(view).name} is not up to date: "
                "run `make dashboards`\n"
            )
            stale = True
    return int(stale)


if __name__ == "__main__":
    run_app(app)
