import { defineConfig } from 'vitest/config';

export default defineConfig({
  server: { fs: { allow: ['..'] } }, // tests/wire is read by both sides
  test: {
    environment: 'jsdom',
    include: ['test/**/*.spec.{ts,tsx}'],
    setupFiles: ['./vitest.setup.mts'],
    // JupyterLab's packages are ES modules that do not say so and import CSS: vite has to load them.
    server: { deps: { inline: [/@jupyterlab\//, /@lumino\//, /@jupyter\//, /@rjsf\//, /@microsoft\//] } },
    css: false
  }
});
