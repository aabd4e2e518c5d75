/** @type {AppTypes.Config} */
// OHIF's configuration for a DICOMweb server at /dicom-web of the page's own origin: Orthanc's plugin, or the
// node's own service (section "web" of pacs-node.yaml). See README.md beside this file for who needs which.
window.config = {
  routerBasename: null,
  extensions: [],
  modes: [],
  showStudyList: true,
  maxNumberOfWebWorkers: 3,
  showWarningMessageForCrossOrigin: true,
  showCPUFallbackMessage: false,
  showLoadingIndicator: true,
  strictZSpacingForVolumeViewport: true,
  investigationalUseDialog: { option: 'always' }, // results of research models are shown: say so
  defaultDataSourceName: 'dicomweb',
  dataSources: [
    {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: 'dicomweb',
      configuration: {
        friendlyName: 'pacs-node',
        name: 'pacs-node',
        qidoRoot: '/dicom-web',
        wadoRoot: '/dicom-web',
        wadoUriRoot: '/wado',
        qidoSupportsIncludeField: false, // Orthanc answers a search with includefield=all slowly or not at all
        supportsFuzzyMatching: false,
        supportsWildcard: true,
        imageRendering: 'wadors',
        thumbnailRendering: 'wadors', // neither server has /thumbnail
        enableStudyLazyLoad: true,
        omitQuotationForMultipartRequest: true, // Orthanc before 1.12 wants the Accept header unquoted
        bulkDataURI: { enabled: true, relativeResolution: 'studies' },
        dicomUploadEnabled: false,
      },
    },
  ],
};
