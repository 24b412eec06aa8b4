declare module "*.css";
declare const RECORDER_URL: string;
