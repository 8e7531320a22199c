// What the report's page needs of Apache ECharts, and nothing else; README.md beside this tells how it is built.
import { init, use } from 'echarts/core';
import { LineChart, ParallelChart, ScatterChart, BarChart } from 'echarts/charts';
import {
  AriaComponent, GridComponent, LegendComponent, MarkLineComponent, ParallelComponent, TooltipComponent,
} from 'echarts/components';
import { SVGRenderer } from 'echarts/renderers';

use([
  LineChart, ParallelChart, ScatterChart, BarChart, AriaComponent, GridComponent, LegendComponent, MarkLineComponent,
  ParallelComponent, TooltipComponent, SVGRenderer,
]);
export { init };
